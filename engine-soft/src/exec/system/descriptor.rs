//! Descriptor tables and what can be asked of descriptors (SDM vol. 2: LGDT, LIDT, SGDT, SIDT, LLDT, SLDT, LTR, STR, VERR,
//! VERW, LAR, LSL).

use engine::event::{FenceKind, StoreKind};
use engine::state::{DescriptorTable, Segment};
use iced_x86::{Code, Instruction};

use crate::cpu::{Cpu, control};
use crate::flags::bit;
use crate::insn::{Exec, Insn};
use crate::mmu::canonical;
use crate::trap::{Step, vector};
use crate::width::Width;

pub(super) fn lookup(i: &Instruction, memory: bool) -> Option<Exec> {
    // The selector operand of LAR and LSL is their second.
    let source = i.op1_kind() == iced_x86::OpKind::Memory;
    Some(match i.code() {
        Code::Lgdt_m1632_16 => lgdt::<3>,
        Code::Lgdt_m1632 => lgdt::<4>,
        Code::Lgdt_m1664 => lgdt::<8>,
        Code::Lidt_m1632_16 => lidt::<3>,
        Code::Lidt_m1632 => lidt::<4>,
        Code::Lidt_m1664 => lidt::<8>,
        Code::Sgdt_m1632_16 | Code::Sgdt_m1632 => sgdt::<4>,
        Code::Sgdt_m1664 => sgdt::<8>,
        Code::Sidt_m1632_16 | Code::Sidt_m1632 => sidt::<4>,
        Code::Sidt_m1664 => sidt::<8>,
        Code::Lldt_rm16 | Code::Lldt_r32m16 | Code::Lldt_r64m16 if memory => lldt::<true>,
        Code::Lldt_rm16 | Code::Lldt_r32m16 | Code::Lldt_r64m16 => lldt::<false>,
        Code::Ltr_rm16 | Code::Ltr_r32m16 | Code::Ltr_r64m16 if memory => ltr::<true>,
        Code::Ltr_rm16 | Code::Ltr_r32m16 | Code::Ltr_r64m16 => ltr::<false>,
        Code::Sldt_rm16 | Code::Sldt_r32m16 | Code::Sldt_r64m16 if memory => sldt_m,
        Code::Sldt_rm16 => sldt_r::<u16>,
        Code::Sldt_r32m16 => sldt_r::<u32>,
        Code::Sldt_r64m16 => sldt_r::<u64>,
        Code::Str_rm16 | Code::Str_r32m16 | Code::Str_r64m16 if memory => str_m,
        Code::Str_rm16 => str_r::<u16>,
        Code::Str_r32m16 => str_r::<u32>,
        Code::Str_r64m16 => str_r::<u64>,
        Code::Verr_rm16 | Code::Verr_r32m16 | Code::Verr_r64m16 if memory => verr::<true>,
        Code::Verr_rm16 | Code::Verr_r32m16 | Code::Verr_r64m16 => verr::<false>,
        Code::Verw_rm16 | Code::Verw_r32m16 | Code::Verw_r64m16 if memory => verw::<true>,
        Code::Verw_rm16 | Code::Verw_r32m16 | Code::Verw_r64m16 => verw::<false>,
        Code::Lar_r16_rm16 if source => lar::<u16, true>,
        Code::Lar_r16_rm16 => lar::<u16, false>,
        Code::Lar_r32_r32m16 if source => lar::<u32, true>,
        Code::Lar_r32_r32m16 => lar::<u32, false>,
        Code::Lar_r64_r64m16 if source => lar::<u64, true>,
        Code::Lar_r64_r64m16 => lar::<u64, false>,
        Code::Lsl_r16_rm16 if source => lsl::<u16, true>,
        Code::Lsl_r16_rm16 => lsl::<u16, false>,
        Code::Lsl_r32_r32m16 if source => lsl::<u32, true>,
        Code::Lsl_r32_r32m16 => lsl::<u32, false>,
        Code::Lsl_r64_r64m16 if source => lsl::<u64, true>,
        Code::Lsl_r64_r64m16 => lsl::<u64, false>,
        _ => return None,
    })
}

/// A descriptor's low eight bytes.
#[derive(Debug, Clone, Copy)]
struct Descriptor(u64);

impl Descriptor {
    const BUSY: u64 = 1 << 41;

    /// Bits 8..24 of the second dword, as in [`Segment::attributes`] without the limit's part.
    fn attributes(self) -> u32 {
        (self.0 >> 40) as u32 & 0xF0FF
    }

    fn base(self) -> u64 {
        self.0 >> 16 & 0xFF_FFFF | self.0 >> 32 & 0xFF00_0000
    }

    /// In bytes.
    fn limit(self) -> u32 {
        let limit = self.0 as u32 & 0xFFFF | (self.0 >> 32) as u32 & 0xF_0000;
        if self.attributes() & Segment::GRANULARITY != 0 { limit << 12 | 0xFFF } else { limit }
    }

    /// Type with the S bit above it: 0 to 15 system, 16 to 31 code or data.
    fn kind(self) -> u32 {
        self.attributes() & 0x1F
    }

    fn is_present(self) -> bool {
        self.attributes() & Segment::PRESENT != 0
    }

    fn dpl(self) -> u8 {
        (self.attributes() >> 5 & 3) as u8
    }

    fn is_conforming_code(self) -> bool {
        self.kind() & 0x1C == 0x1C
    }
}

impl Cpu {
    fn long_active(&self) -> bool {
        self.efer & control::EFER_LMA != 0
    }

    /// LDT and task register exist in protected mode only.
    fn protected(&mut self) -> Step {
        if self.real { self.ud() } else { Ok(()) }
    }

    /// Address of a descriptor, if all `size` bytes of it are within its table.
    fn descriptor_address(&self, selector: u16, size: u64) -> Option<u64> {
        let (base, limit) = if selector & 4 == 0 {
            (self.gdt.base, u64::from(self.gdt.limit))
        } else if self.ldt.attributes & Segment::UNUSABLE == 0 && self.ldt.attributes & Segment::PRESENT != 0
        {
            (self.ldt.base, u64::from(self.ldt.limit))
        } else {
            return None;
        };
        let offset = u64::from(selector & !7);
        (offset + size - 1 <= limit).then(|| self.table_address(base, offset))
    }

    fn table_address(&self, base: u64, offset: u64) -> u64 {
        let va = base.wrapping_add(offset);
        if self.long_active() { va } else { va & 0xFFFF_FFFF }
    }

    fn selector<const MEMORY: bool>(&mut self, insn: &Insn, register: usize) -> Step<u16> {
        if MEMORY { self.load(insn) } else { Ok(self.get(insn.r[register])) }
    }

    fn set_zero_flag(&mut self, on: bool) {
        let rest = self.flags.status() & !bit::ZF;
        self.flags.set_status(if on { rest | bit::ZF } else { rest });
    }

    /// The system descriptor that LLDT and LTR load: with its address and its base, which in long mode is 64 bits wide.
    fn system_descriptor(&mut self, selector: u16, wanted: fn(u32) -> bool) -> Step<(u64, Descriptor, u64)> {
        let error = Some(u32::from(selector & !3));
        let long = self.long_active();
        let within = if selector & 4 != 0 {
            None
        } else {
            self.descriptor_address(selector, if long { 16 } else { 8 })
        };
        let Some(at) = within else { return self.raise(vector::GP, error) };
        let descriptor = Descriptor(self.load_system(at)?);
        let high: u64 = if long { self.load_system(at.wrapping_add(8))? } else { 0 };
        if !wanted(descriptor.kind()) || high >> 40 & 0x1F != 0 {
            return self.raise(vector::GP, error);
        }
        if !descriptor.is_present() {
            return self.raise(vector::NP, error);
        }
        let base = descriptor.base() | high << 32;
        if !canonical(base) {
            return self.raise(vector::GP, error);
        }
        Ok((at, descriptor, base))
    }

    /// What a selector names, as far as VERR, VERW, LAR and LSL may look at it.
    fn visible_descriptor(&mut self, selector: u16) -> Step<Option<Descriptor>> {
        self.protected()?;
        if selector & !3 == 0 {
            return Ok(None);
        }
        let Some(at) = self.descriptor_address(selector, 8) else { return Ok(None) };
        let descriptor = Descriptor(self.load_system(at)?);
        let level = self.cpl.max((selector & 3) as u8);
        Ok((descriptor.is_conforming_code() || level <= descriptor.dpl()).then_some(descriptor))
    }
}

/// A table's limit and base in memory.
fn load_table<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Step<DescriptorTable> {
    cpu.privileged()?;
    let width = BYTES.next_power_of_two();
    let mut image = [0; 10];
    let offset = cpu.offset(insn);
    cpu.load_bytes(insn.seg, offset, &mut image[..2 + width])?;
    image[2 + BYTES..].fill(0);
    let mut base = [0; 8];
    base.copy_from_slice(&image[2..]);
    let base = u64::from_le_bytes(base);
    if !canonical(base) {
        return cpu.gp();
    }
    cpu.fence(FenceKind::Serialising);
    Ok(DescriptorTable { base, limit: u16::from_le_bytes([image[0], image[1]]) })
}

fn store_table<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn, table: DescriptorTable) -> Step {
    let mut image = [0; 10];
    image[..2].copy_from_slice(&table.limit.to_le_bytes());
    image[2..].copy_from_slice(&table.base.to_le_bytes());
    let offset = cpu.offset(insn);
    cpu.store_bytes(insn.seg, offset, &image[..2 + BYTES], StoreKind::Cached)
}

fn lgdt<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.gdt = load_table::<BYTES>(cpu, insn)?;
    Ok(())
}

fn lidt<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.idt = load_table::<BYTES>(cpu, insn)?;
    Ok(())
}

fn sgdt<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Step {
    store_table::<BYTES>(cpu, insn, cpu.gdt)
}

fn sidt<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Step {
    store_table::<BYTES>(cpu, insn, cpu.idt)
}

fn lldt<const MEMORY: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.protected()?;
    cpu.privileged()?;
    let selector = cpu.selector::<MEMORY>(insn, 0)?;
    if selector & !3 == 0 {
        let attributes = Segment::UNUSABLE;
        cpu.ldt = Segment { selector, base: 0, limit: 0, attributes };
    } else {
        let (_, descriptor, base) = cpu.system_descriptor(selector, |kind| kind == 2)?;
        let (limit, attributes) = (descriptor.limit(), descriptor.attributes());
        cpu.ldt = Segment { selector, base, limit, attributes };
    }
    cpu.fence(FenceKind::Serialising);
    Ok(())
}

fn ltr<const MEMORY: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.protected()?;
    cpu.privileged()?;
    let selector = cpu.selector::<MEMORY>(insn, 0)?;
    if selector & !3 == 0 {
        return cpu.gp();
    }
    let available: fn(u32) -> bool =
        if cpu.long_active() { |kind| kind == 9 } else { |kind| matches!(kind, 1 | 9) };
    let (at, descriptor, base) = cpu.system_descriptor(selector, available)?;
    let busy = Descriptor(descriptor.0 | Descriptor::BUSY);
    cpu.store_system(at, busy.0)?;
    cpu.tr = Segment { selector, base, limit: busy.limit(), attributes: busy.attributes() };
    cpu.fence(FenceKind::Serialising);
    Ok(())
}

fn sldt_r<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.protected()?;
    cpu.put(insn.r[0], W::of(u64::from(cpu.ldt.selector)));
    Ok(())
}

fn sldt_m(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.protected()?;
    cpu.store(insn, cpu.ldt.selector)
}

fn str_r<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.protected()?;
    cpu.put(insn.r[0], W::of(u64::from(cpu.tr.selector)));
    Ok(())
}

fn str_m(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.protected()?;
    cpu.store(insn, cpu.tr.selector)
}

fn verr<const MEMORY: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.protected()?;
    let selector = cpu.selector::<MEMORY>(insn, 0)?;
    let found = cpu.visible_descriptor(selector)?;
    // Data, or code that is readable.
    cpu.set_zero_flag(found.is_some_and(|d| matches!(d.kind() & 0x1A, 0x10 | 0x12 | 0x1A)));
    Ok(())
}

fn verw<const MEMORY: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.protected()?;
    let selector = cpu.selector::<MEMORY>(insn, 0)?;
    let found = cpu.visible_descriptor(selector)?;
    cpu.set_zero_flag(found.is_some_and(|d| d.kind() & 0x1A == 0x12));
    Ok(())
}

fn lar<W: Width, const MEMORY: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.protected()?;
    let selector = cpu.selector::<MEMORY>(insn, 1)?;
    let long = cpu.long_active();
    let found = cpu.visible_descriptor(selector)?.filter(|descriptor| match descriptor.kind() {
        16.. | 2 | 9 | 11 | 12 => true,
        1 | 3 | 4 | 5 => !long,
        _ => false,
    });
    if let Some(Descriptor(bits)) = found {
        // The limit's part in bits 16 to 19 is undefined; hardware gives it.
        cpu.put(insn.r[0], W::of(bits >> 32 & 0xFF_FF00));
    }
    cpu.set_zero_flag(found.is_some());
    Ok(())
}

fn lsl<W: Width, const MEMORY: bool>(cpu: &mut Cpu, insn: &Insn) -> Step {
    cpu.protected()?;
    let selector = cpu.selector::<MEMORY>(insn, 1)?;
    let long = cpu.long_active();
    let found = cpu.visible_descriptor(selector)?.filter(|descriptor| match descriptor.kind() {
        16.. | 2 | 9 | 11 => true,
        1 | 3 => !long,
        _ => false,
    });
    if let Some(descriptor) = found {
        cpu.put(insn.r[0], W::of(u64::from(descriptor.limit())));
    }
    cpu.set_zero_flag(found.is_some());
    Ok(())
}
