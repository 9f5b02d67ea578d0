//! One vCPU: the registers that instructions work on.

use engine::VcpuId;
use engine::state::{DescriptorTable, Segment};

use crate::flags::Flags;
use crate::fx::FxArea;
use crate::insn::{FLAT, Insn, RIP};
use crate::trap::{Cause, Step, Trap, vector};
use crate::width::Width;

/// One vCPU.
#[derive(Debug)]
pub struct Cpu {
    /// General registers 0..16; [`crate::insn::ZERO`] is 0; [`RIP`] is the next instruction. The rest is never named.
    pub gpr: [u64; 32],
    /// RFLAGS.
    pub flags: Flags,
    /// Bases by [`Insn::seg`]; the two flat ones are 0.
    pub seg_base: [u64; 8],
    /// Segment registers in encoding order. Their bases are repeated in `seg_base`.
    pub segments: [Segment; 6],
    /// Local descriptor table.
    pub ldt: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdt: DescriptorTable,
    /// Interrupt descriptor table.
    pub idt: DescriptorTable,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// x87, MMX and SSE registers.
    pub fx: FxArea,
    /// Current privilege level.
    pub cpl: u8,
    /// In 64-bit mode (EFER.LMA and CS.L).
    pub long: bool,
    /// Why the last [`Trap`] was given.
    pub cause: Cause,
    /// Which one this is.
    pub id: VcpuId,
}

impl Cpu {
    /// A general register of width `W`, by its number in [`Insn::r`].
    #[inline(always)]
    #[must_use]
    pub fn get<W: Width>(&self, r: u8) -> W {
        if W::BITS == 8 {
            W::of(self.gpr[usize::from(r >> 1 & 31)] >> ((r & 1) * 8))
        } else {
            W::of(self.gpr[usize::from(r & 31)])
        }
    }

    /// Writes a general register of width `W`.
    #[inline(always)]
    pub fn put<W: Width>(&mut self, r: u8, value: W) {
        if W::BITS == 8 {
            let shift = (r & 1) * 8;
            let slot = &mut self.gpr[usize::from(r >> 1 & 31)];
            *slot = *slot & !(0xFF << shift) | value.zext() << shift;
        } else {
            let slot = &mut self.gpr[usize::from(r & 31)];
            *slot = value.merge(*slot);
        }
    }

    /// RIP; within [`crate::insn::Exec`] that of the next instruction.
    #[inline(always)]
    #[must_use]
    pub fn rip(&self) -> u64 {
        self.gpr[usize::from(RIP)]
    }

    /// Offset part of the memory operand's address, cut to the address size.
    #[inline(always)]
    #[must_use]
    pub fn offset(&self, insn: &Insn) -> u64 {
        let offset = self.gpr[usize::from(insn.base & 31)]
            .wrapping_add(self.gpr[usize::from(insn.index & 31)] << (insn.scale & 3))
            .wrapping_add(insn.disp);
        match insn.addr_size {
            8 => offset,
            4 => offset & 0xFFFF_FFFF,
            _ => offset & 0xFFFF,
        }
    }

    /// Linear address of the memory operand.
    #[inline(always)]
    #[must_use]
    pub fn linear(&self, insn: &Insn) -> u64 {
        let offset = self.offset(insn);
        if insn.seg >= FLAT { offset } else { self.in_segment(insn.seg, offset) }
    }

    /// Linear address of an offset in a segment; 32 bits wide outside 64-bit mode.
    #[inline(always)]
    #[must_use]
    pub fn in_segment(&self, seg: u8, offset: u64) -> u64 {
        let linear = self.seg_base[usize::from(seg & 7)].wrapping_add(offset);
        if self.long { linear } else { linear & 0xFFFF_FFFF }
    }

    /// Gives up the instruction for an exception.
    #[cold]
    pub fn raise<T>(&mut self, vector: u8, code: Option<u32>) -> Step<T> {
        self.cause = Cause::Exception { vector, code };
        Err(Trap)
    }

    /// #GP(0).
    #[cold]
    pub fn gp<T>(&mut self) -> Step<T> {
        self.raise(vector::GP, Some(0))
    }

    /// #UD.
    #[cold]
    pub fn ud<T>(&mut self) -> Step<T> {
        self.raise(vector::UD, None)
    }
}
