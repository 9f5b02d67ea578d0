//! What an instruction will do to memory, told before it is executed (SDM vol. 2).

use engine::event::{FenceKind, FlushKind, StoreKind};
use iced_x86::{Code, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, UsedMemory};
use kvm_bindings::{kvm_regs, kvm_sregs};

use super::xsave::{self, Extended};

/// FXSAVE stores no more than its defined part.
const FXSAVE: u64 = 416;

/// What is done at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Touch {
    Load,
    Store(StoreKind),
    Flush(FlushKind),
}

/// A run of bytes that is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) linear: u64,
    pub(super) len: u64,
    pub(super) touch: Touch,
    /// It is on the stack, so that a bad address is #SS.
    pub(super) stack: bool,
}

/// The accesses of an instruction, loads first; `extended` counts if it is one of [`xsave`].
pub(super) fn accesses(
    instruction: &Instruction,
    info: &mut InstructionInfoFactory,
    (regs, sregs): (&kvm_regs, &kvm_sregs),
    extended: Extended,
    out: &mut Vec<Access>,
) {
    out.clear();
    if touches_nothing(instruction, regs) {
        return;
    }
    let flush = flush_kind(instruction);
    let store = store_kind(instruction);
    for used in info.info(instruction).used_memory() {
        let Some(mut linear) = linear(used, regs, sregs) else { continue };
        linear = linear.wrapping_add_signed(bit_string(instruction, regs));
        let len = size(instruction, used);
        let stack = matches!(used.base(), Register::RSP | Register::ESP | Register::SP | Register::RBP);
        let access = |touch| Access { linear, len, touch, stack };
        if xsave::is_one(instruction) {
            let parts = xsave::parts(instruction, regs, sregs, extended).into_iter();
            out.extend(parts.map(|(part, touch)| Access {
                linear: linear.wrapping_add(part.start),
                len: part.end - part.start,
                touch,
                stack,
            }));
            break;
        }
        if let Some(kind) = flush {
            out.push(access(Touch::Flush(kind)));
            continue;
        }
        let (load, stores) = match used.access() {
            OpAccess::Read | OpAccess::CondRead => (true, false),
            OpAccess::Write | OpAccess::CondWrite => (false, true),
            OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
            OpAccess::None | OpAccess::NoMemAccess => (false, false),
        };
        if load {
            out.push(access(Touch::Load));
        }
        if stores {
            out.push(access(Touch::Store(store)));
        }
    }
    out.sort_by_key(|access| access.touch != Touch::Load);
}

/// What orders stores, if it does.
pub(super) fn fence_kind(i: &Instruction) -> Option<FenceKind> {
    let locked = i.has_lock_prefix() || (i.mnemonic() == Mnemonic::Xchg && has_memory(i));
    Some(match i.mnemonic() {
        _ if locked => FenceKind::Locked,
        Mnemonic::Sfence => FenceKind::Sfence,
        Mnemonic::Mfence => FenceKind::Mfence,
        Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => FenceKind::Wbinvd,
        Mnemonic::Invd => FenceKind::Invd,
        Mnemonic::Cpuid
        | Mnemonic::Iret
        | Mnemonic::Iretd
        | Mnemonic::Iretq
        | Mnemonic::Wrmsr
        | Mnemonic::Invlpg
        | Mnemonic::Lmsw
        | Mnemonic::Lgdt
        | Mnemonic::Lidt
        | Mnemonic::Lldt
        | Mnemonic::Ltr => FenceKind::Serialising,
        // CR8 is the local APIC's task priority and orders nothing.
        Mnemonic::Mov if i.op0_register().is_cr() && i.op0_register() != Register::CR8 => {
            FenceKind::Serialising
        }
        Mnemonic::Mov if i.op0_register().is_dr() => FenceKind::Serialising,
        _ => return None,
    })
}

/// CMPXCHG and its wider kin: whether they stored is told by ZF afterwards.
pub(super) fn is_exchange(i: &Instruction) -> bool {
    matches!(i.mnemonic(), Mnemonic::Cmpxchg | Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b)
}

/// May it have a local APIC interrupt a vCPU? (In x2APIC mode, or by task priority.)
pub(super) fn touches_apic(i: &Instruction) -> bool {
    i.mnemonic() == Mnemonic::Wrmsr || (i.mnemonic() == Mnemonic::Mov && i.op0_register() == Register::CR8)
}

fn store_kind(i: &Instruction) -> StoreKind {
    match i.mnemonic() {
        Mnemonic::Movnti
        | Mnemonic::Movntq
        | Mnemonic::Movntdq
        | Mnemonic::Movntps
        | Mnemonic::Movntpd
        | Mnemonic::Maskmovq
        | Mnemonic::Maskmovdqu => StoreKind::NonTemporal,
        _ if fence_kind(i) == Some(FenceKind::Locked) => StoreKind::Locked,
        _ => StoreKind::Cached,
    }
}

fn flush_kind(i: &Instruction) -> Option<FlushKind> {
    Some(match i.code() {
        Code::Clflush_m8 => FlushKind::Clflush,
        Code::Clflushopt_m8 => FlushKind::Clflushopt,
        Code::Clwb_m8 => FlushKind::Clwb,
        _ => return None,
    })
}

fn has_memory(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory)
}

/// Instructions that name memory and do not touch it, and repeated ones that are over.
fn touches_nothing(i: &Instruction, regs: &kvm_regs) -> bool {
    let count = match i.code() {
        _ if !(i.is_string_instruction() && (i.has_rep_prefix() || i.has_repne_prefix())) => 1,
        _ if addresses_32_bits(i) => regs.rcx & 0xFFFF_FFFF,
        _ => regs.rcx,
    };
    let hint = matches!(
        i.mnemonic(),
        Mnemonic::Prefetchnta
            | Mnemonic::Prefetcht0
            | Mnemonic::Prefetcht1
            | Mnemonic::Prefetcht2
            | Mnemonic::Prefetchw
            | Mnemonic::Prefetch
            | Mnemonic::Invlpg
            | Mnemonic::Nop
            | Mnemonic::Lea
    );
    hint || count == 0
}

fn addresses_32_bits(i: &Instruction) -> bool {
    (0..i.op_count())
        .any(|n| matches!(i.op_kind(n), OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI))
}

/// BT, BTS, BTR and BTC by a register reach beyond their operand: by how many bytes.
fn bit_string(i: &Instruction, regs: &kvm_regs) -> i64 {
    let by_register = matches!(i.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && i.op0_kind() == OpKind::Memory
        && i.op1_kind() == OpKind::Register;
    if !by_register {
        return 0;
    }
    let value = general(i.op1_register().full_register(), regs).unwrap_or(0);
    let (bits, shift) = match i.op1_register().size() {
        2 => (i64::from(value as i16), 4),
        4 => (i64::from(value as i32), 5),
        _ => (value.cast_signed(), 6),
    };
    (bits >> shift) * (1 << (shift - 3))
}

fn size(i: &Instruction, used: &UsedMemory) -> u64 {
    match i.mnemonic() {
        Mnemonic::Fxsave | Mnemonic::Fxsave64 => FXSAVE,
        // Of repeated string instructions it is left open how much they touch: an element at a time.
        _ if i.is_string_instruction() => i.memory_size().size() as u64,
        _ => used.memory_size().size() as u64,
    }
}

fn linear(used: &UsedMemory, regs: &kvm_regs, sregs: &kvm_sregs) -> Option<u64> {
    used.virtual_address(0, |register, _, _| {
        Some(match register {
            Register::FS => sregs.fs.base,
            Register::GS => sregs.gs.base,
            Register::CS | Register::DS | Register::ES | Register::SS if sregs.cs.l != 0 => 0,
            Register::CS => sregs.cs.base,
            Register::DS => sregs.ds.base,
            Register::ES => sregs.es.base,
            Register::SS => sregs.ss.base,
            register => {
                let full = general(register.full_register(), regs)?;
                match register.size() {
                    2 => full & 0xFFFF,
                    4 => full & 0xFFFF_FFFF,
                    1 => full & 0xFF,
                    _ => full,
                }
            }
        })
    })
}

/// A 64-bit general register.
pub(super) fn general(register: Register, regs: &kvm_regs) -> Option<u64> {
    Some(match register {
        Register::RAX => regs.rax,
        Register::RBX => regs.rbx,
        Register::RCX => regs.rcx,
        Register::RDX => regs.rdx,
        Register::RSI => regs.rsi,
        Register::RDI => regs.rdi,
        Register::RSP => regs.rsp,
        Register::RBP => regs.rbp,
        Register::R8 => regs.r8,
        Register::R9 => regs.r9,
        Register::R10 => regs.r10,
        Register::R11 => regs.r11,
        Register::R12 => regs.r12,
        Register::R13 => regs.r13,
        Register::R14 => regs.r14,
        Register::R15 => regs.r15,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::Touch::{Flush, Load, Store};
    use super::*;

    fn of(code: &[u8]) -> (Vec<(u64, u64, Touch)>, Option<FenceKind>) {
        let regs = kvm_regs {
            rbx: 0x1000,
            rcx: 3,
            rsp: 0x8000,
            rsi: 0x2000,
            rdi: 0x3000,
            rdx: (-9_i64).cast_unsigned(),
            ..Default::default()
        };
        let mut sregs = kvm_sregs { cr4: 1 << 18, ..Default::default() };
        sregs.cs.l = 1;
        sregs.gs.base = 0xFFFF_8000_0000_0000;
        let instruction = Decoder::with_ip(64, code, 0x4000, DecoderOptions::NONE).decode();
        let mut out = Vec::new();
        let state = Extended { xcr0: 7, in_use: 7 };
        accesses(&instruction, &mut InstructionInfoFactory::new(), (&regs, &sregs), state, &mut out);
        (out.into_iter().map(|a| (a.linear, a.len, a.touch)).collect(), fence_kind(&instruction))
    }

    const CACHED: Touch = Store(StoreKind::Cached);
    const LOCKED: Touch = Store(StoreKind::Locked);
    const NT: Touch = Store(StoreKind::NonTemporal);

    #[test]
    fn stores_loads_and_their_kinds() {
        assert_eq!(of(&[0x48, 0x89, 0x43, 0x08]), (vec![(0x1008, 8, CACHED)], None));
        assert_eq!(of(&[0x48, 0x01, 0x03]).0, [(0x1000, 8, Load), (0x1000, 8, CACHED)]);
        assert_eq!(of(&[0x65, 0x88, 0x03]).0, [(0xFFFF_8000_0000_1000, 1, CACHED)]);
        assert_eq!(of(&[0x89, 0x05, 0x10, 0, 0, 0]).0, [(0x4016, 4, CACHED)]);
        assert_eq!(of(&[0x0F, 0xC3, 0x03]).0, [(0x1000, 4, NT)]);
        assert_eq!(of(&[0x66, 0x0F, 0xE7, 0x03]).0, [(0x1000, 16, NT)]);
        assert_eq!(
            of(&[0xF0, 0xFF, 0x03]),
            (vec![(0x1000, 4, Load), (0x1000, 4, LOCKED)], Some(FenceKind::Locked))
        );
        assert_eq!(of(&[0x48, 0x87, 0x03]).1, Some(FenceKind::Locked));
        assert_eq!(of(&[0x48, 0x87, 0xD8]).1, None, "xchg of registers");
        assert_eq!(of(&[0x48, 0x8D, 0x03]).0, [], "lea");
        assert_eq!(of(&[0x0F, 0x1F, 0x03]).0, [], "nop");
        assert_eq!(of(&[0x0F, 0x01, 0x3B]), (vec![], Some(FenceKind::Serialising)), "invlpg");
    }

    #[test]
    fn the_stack_strings_and_bit_strings() {
        assert_eq!(of(&[0x50]).0, [(0x7FF8, 8, CACHED)]);
        assert_eq!(of(&[0xE8, 0, 0, 0, 0]).0, [(0x7FF8, 8, CACHED)]);
        assert_eq!(of(&[0x58]).0, [(0x8000, 8, Load)]);
        assert_eq!(of(&[0xF3, 0xAA]).0, [(0x3000, 1, CACHED)]);
        assert_eq!(of(&[0xF3, 0x48, 0xA5]).0, [(0x2000, 8, Load), (0x3000, 8, CACHED)]);
        assert_eq!(of(&[0x48, 0x0F, 0xAB, 0x13]).0, [(0xFF8, 8, Load), (0xFF8, 8, CACHED)], "bts [rbx], rdx");
        assert_eq!(of(&[0x0F, 0xAB, 0x13]).0, [(0xFFC, 4, Load), (0xFFC, 4, CACHED)], "bts [rbx], edx");
        assert_eq!(of(&[0x48, 0x0F, 0xAE, 0x03]).0, [(0x1000, 416, CACHED)]);
        let header = [(0x1200, 8, Load), (0x1200, 8, CACHED)];
        assert_eq!(of(&[0x48, 0x0F, 0xAE, 0x23]).0, header, "xsave64 of no component");
    }

    #[test]
    fn flushes_and_fences() {
        assert_eq!(of(&[0x66, 0x0F, 0xAE, 0x33]).0, [(0x1000, 1, Flush(FlushKind::Clwb))]);
        assert_eq!(of(&[0x66, 0x0F, 0xAE, 0x3B]).0, [(0x1000, 1, Flush(FlushKind::Clflushopt))]);
        assert_eq!(of(&[0x0F, 0xAE, 0x3B]).0, [(0x1000, 1, Flush(FlushKind::Clflush))]);
        assert_eq!(of(&[0x0F, 0xAE, 0xF8]), (vec![], Some(FenceKind::Sfence)));
        assert_eq!(of(&[0x0F, 0xAE, 0xE8]), (vec![], None), "lfence");
        assert_eq!(of(&[0x0F, 0x22, 0xD8]).1, Some(FenceKind::Serialising), "mov cr3");
        assert_eq!(of(&[0x44, 0x0F, 0x22, 0xC0]).1, None, "mov cr8");
        assert_eq!(of(&[0x0F, 0x23, 0xF8]).1, Some(FenceKind::Serialising), "mov dr7");
    }
}
