//! Accesses of a block to addresses that differ by constants: a stack frame, the fields of a structure.
//!
//! The first one of such a group probes for all bytes that the group reaches, and keeps in the frame what makes host addresses
//! of them; the others need no probe. Between them stand only instructions that change no translation of addresses. Where the
//! translation cache does not have all bytes, because they lie in two pages, say, the interpreter does the block from there
//! to its end; where that happens again and again the block is translated once more, without groups.

use std::mem::offset_of;

use iced_x86::{Code, ConditionCode, Instruction, Mnemonic as M, OpKind, Register};

use super::body::Body;
use super::emit::{RAX, RCX, RDX, Rm, SCRATCH, op, word};
use super::flags::Settling;
use super::memory::{Address, Way};
use super::registers::PLACES;
use super::thunk::Site;
use crate::frame::{Frame, GROUPS};

/// Bytes that a group reaches over, at most: the more, the oftener they lie in two pages.
const REACH: i64 = 512;

/// General registers by number.
const RSP_NUMBER: usize = 4;
const RBP_NUMBER: usize = 5;

/// A value at some place in the block, by a number of its own, and a constant that was added since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Value {
    origin: u32,
    added: i64,
}

/// An access to a register's value and a constant.
#[derive(Debug, Clone, Copy)]
struct Access {
    base: usize,
    disp: i64,
    size: i64,
    writes: bool,
}

/// One of a group.
#[derive(Debug, Clone, Copy)]
struct Member {
    group: usize,
    access: Access,
    /// The base's value there, from the group's origin on.
    added: i64,
}

/// Bytes that the accesses of a group reach, from its origin on.
#[derive(Debug, Clone, Copy)]
struct Group {
    origin: u32,
    low: i64,
    high: i64,
    writes: bool,
    members: u32,
}

/// The groups of a block.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    groups: Vec<Group>,
    /// By instruction: its operand's and its stack's.
    members: Vec<[Option<Member>; 2]>,
    /// Groups that have been probed for, as bits.
    pub(crate) probed: u32,
}

/// Which access of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    Operand,
    Stack,
}

/// What a probe for a group was for, as the interpreter is told: the first address is in the frame's scratch word.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Probed {
    base: usize,
    disp: i32,
    reach: i32,
}

impl Groups {
    /// Of a block.
    pub(crate) fn of(forms: &[Instruction]) -> Self {
        let mut values: [Value; 16] = std::array::from_fn(|n| Value { origin: n as u32, added: 0 });
        let mut next = 16;
        let mut all = Self::default();
        for i in forms {
            let members = [operand(i), stack(i)].map(|access| all.take(access?, &values));
            all.members.push(members);
            follow(i, &mut values, &mut next);
        }
        all
    }

    /// Adds an access to the group that it belongs to.
    fn take(&mut self, access: Access, values: &[Value; 16]) -> Option<Member> {
        let Value { origin, added } = values[access.base];
        let low = added.checked_add(access.disp)?;
        let high = low + access.size;
        let fits =
            |group: &Group| group.origin == origin && group.high.max(high) - group.low.min(low) <= REACH;
        let known = self.groups.iter().rposition(fits);
        let group = known.unwrap_or(self.groups.len());
        if known.is_none() {
            if group == GROUPS {
                return None;
            }
            self.groups.push(Group { origin, low, high, writes: false, members: 0 });
        }
        let found = &mut self.groups[group];
        (found.low, found.high) = (found.low.min(low), found.high.max(high));
        found.writes |= access.writes;
        found.members += 1;
        Some(Member { group, access, added })
    }
}

/// A memory operand that is a register and a constant, of an instruction whose kind is known here.
fn operand(i: &Instruction) -> Option<Access> {
    use M::{
        Adc, Add, And, Cmp, Dec, Imul, Inc, Mov, Movsx, Movsxd, Movzx, Neg, Not, Or, Push, Sbb, Sub, Test,
        Xor,
    };
    let reads_only = matches!(i.mnemonic(), Cmp | Test | Push);
    let known = matches!(
        i.mnemonic(),
        Mov | Add | Or | Adc | Sbb | And | Sub | Xor | Inc | Dec | Not | Neg | Movzx | Movsx | Movsxd | Imul
    );
    let at = (0..i.op_count()).find(|&n| i.op_kind(n) == OpKind::Memory)?;
    let plain = i.memory_index() == Register::None
        && i.memory_base().is_gpr64()
        && !matches!(i.segment_prefix(), Register::FS | Register::GS)
        && !i.has_lock_prefix();
    let vector = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && !i.op_register(n).is_gpr());
    let one_operand = i.mnemonic() == Imul && i.op_count() == 1;
    if !(reads_only || known) || !plain || vector || one_operand {
        return None;
    }
    let disp = i64::from(i32::try_from(i.memory_displacement64() as i64).ok()?);
    Some(Access {
        base: i.memory_base().number(),
        disp,
        size: i.memory_size().size() as i64,
        writes: at == 0 && !reads_only,
    })
}

/// What an instruction does to the stack, or LEAVE to its frame.
fn stack(i: &Instruction) -> Option<Access> {
    let access = |base, disp, writes| Some(Access { base, disp, size: 8, writes });
    match i.mnemonic() {
        M::Push | M::Pushfq | M::Call if i.stack_pointer_increment() == -8 => access(RSP_NUMBER, -8, true),
        M::Pop if i.stack_pointer_increment() == 8 => access(RSP_NUMBER, 0, false),
        M::Ret => access(RSP_NUMBER, 0, false),
        M::Leave => access(RBP_NUMBER, 0, false),
        _ => None,
    }
}

/// Values of the registers behind an instruction. What is not known here may change all of them, and translations.
fn follow(i: &Instruction, values: &mut [Value; 16], next: &mut u32) {
    let mut fresh = |values: &mut [Value; 16], n: usize| {
        values[n] = Value { origin: *next, added: 0 };
        *next += 1;
    };
    let to = (i.op_count() > 0 && i.op_kind(0) == OpKind::Register).then(|| i.op_register(0));
    let number = |register: Register| register.full_register().number() & 15;
    let wide = to.filter(|register| register.is_gpr64()).map(number);
    let moved = |values: &[Value; 16], from: usize, by: i64| Value {
        added: values[from].added.wrapping_add(by),
        ..values[from]
    };
    match i.mnemonic() {
        M::Cmp | M::Test | M::Nop | M::Endbr64 => {}
        M::Push | M::Pushfq if i.stack_pointer_increment() == -8 => {
            values[RSP_NUMBER] = moved(values, RSP_NUMBER, -8);
        }
        M::Pop if i.stack_pointer_increment() == 8 && to.is_some_and(Register::is_gpr) => {
            values[RSP_NUMBER] = moved(values, RSP_NUMBER, 8);
            fresh(values, to.map_or(0, number));
        }
        M::Leave if i.code() == Code::Leaveq => {
            values[RSP_NUMBER] = moved(values, RBP_NUMBER, 8);
            fresh(values, RBP_NUMBER);
        }
        M::Mov if wide.is_some() && i.op1_kind() == OpKind::Register && i.op1_register().is_gpr64() => {
            values[wide.unwrap_or_default()] = moved(values, number(i.op1_register()), 0);
        }
        M::Lea
            if wide.is_some()
                && i.memory_index() == Register::None
                && i.memory_base().is_gpr64()
                && i32::try_from(i.memory_displacement64() as i64).is_ok() =>
        {
            let by = i.memory_displacement64() as i64;
            values[wide.unwrap_or_default()] = moved(values, number(i.memory_base()), by);
        }
        M::Add | M::Sub
            if wide.is_some() && i.op1_kind() != OpKind::Register && i.op1_kind() != OpKind::Memory =>
        {
            let by = i.immediate(1) as i64;
            let by = if i.mnemonic() == M::Sub { by.wrapping_neg() } else { by };
            let to = wide.unwrap_or_default();
            values[to] = moved(values, to, by);
        }
        M::Mov
        | M::Add
        | M::Or
        | M::Adc
        | M::Sbb
        | M::And
        | M::Sub
        | M::Xor
        | M::Inc
        | M::Dec
        | M::Not
        | M::Neg
        | M::Lea
        | M::Movzx
        | M::Movsx
        | M::Movsxd
        | M::Bswap
        | M::Shl
        | M::Shr
        | M::Sar
        | M::Rol
        | M::Ror => match to {
            Some(register) if register.is_gpr() => fresh(values, number(register)),
            None if i.op_count() > 0 && i.op_kind(0) == OpKind::Memory => {}
            _ => (0..16).for_each(|n| fresh(values, n)),
        },
        M::Imul if i.op_count() > 1 => fresh(values, to.map_or(0, number)),
        M::Cwde | M::Cdqe => fresh(values, 0),
        M::Cdq | M::Cqo => fresh(values, 2),
        // SETcc, CMOVcc, Jcc.
        _ if i.condition_code() != ConditionCode::None => {
            if let Some(register) = to {
                fresh(values, number(register));
            }
        }
        _ => (0..16).for_each(|n| fresh(values, n)),
    }
}

/// [`Frame::reach`] of a group.
fn reach(bytes: i64, writes: bool) -> i32 {
    bytes as i32 * 2 + i32::from(writes)
}

/// Where the frame keeps what makes host addresses of a group's.
fn kept(group: usize) -> Rm {
    word(offset_of!(Frame, groups) + 8 * group)
}

impl Body<'_> {
    /// The access of the current instruction as one of its group, if it is one that others are with.
    pub(crate) fn grouped(&mut self, which: Which, size: usize, way: Way) -> Option<Rm> {
        let member = (*self.groups.members.get(self.current)?.get(which as usize)?)?;
        let Member { group: number, access, added } = member;
        let group = self.groups.groups[number];
        let served = access.size == size as i64 && (group.writes || way == Way::Read);
        if group.members < 2 || !served {
            return None;
        }
        let disp = access.disp as i32;
        if self.groups.probed >> number & 1 == 0 {
            let probed = Probed {
                base: access.base,
                disp: i32::try_from(group.low - added).ok()?,
                reach: reach(group.high - group.low, group.writes),
            };
            self.first_address(probed);
            let last = Rm::Index(RCX, RAX, 0, (group.high - group.low - 1) as i32);
            self.known(Address::In(RAX), last, if group.writes { Way::Write } else { Way::Read });
            self.asm.store(kept(number), RDX);
            self.groups.probed |= 1 << number;
            self.probing = Some(probed);
        } else {
            self.asm.load(RDX, kept(number));
            if way == Way::Write {
                self.changes();
            }
        }
        let base = self.in_register(PLACES[access.base], RAX);
        Some(Rm::Index(base, RDX, 0, disp))
    }

    /// Puts the first address of a group in RAX.
    fn first_address(&mut self, probed: Probed) {
        let base = self.in_register(PLACES[probed.base], RAX);
        self.asm.lea(RAX, Rm::Base(base, probed.disp));
    }

    /// Has the interpreter do the block from an instruction to its end, with flags as it would have left them.
    pub(crate) fn interpret_rest(&mut self, k: usize, settling: Option<Settling>, probed: Probed) {
        if let Some(settling) = settling {
            self.settle(settling);
        }
        self.first_address(probed);
        self.asm.store(SCRATCH, RAX);
        self.asm.modrm(op(0xC7), 4, 0, word(offset_of!(Frame, reach)));
        self.asm.immediate(4, probed.reach);
        self.asm.constant(RCX, Site::new(self.number, k).0.into());
        self.asm.go(0xE8, self.thunks.rest);
    }
}
