//! The x87 (SDM vol. 1, ch. 8): every computing form is the host's own instruction.

mod control;
mod environment;

use engine::event::StoreKind;
use iced_x86::{Code, Instruction};

use super::native::{self, Scratch};
use super::{none_pending, x87_usable};
use crate::cpu::Cpu;
use crate::fx::fsw;
use crate::insn::{Exec, FLAT, Insn};
use crate::mem::MemValue;
use crate::trap::Step;

/// The function that executes an x87 instruction.
pub fn lookup(i: &Instruction) -> Option<Exec> {
    computing(i.code()).or_else(|| control::lookup(i.code())).or_else(|| environment::lookup(i.code()))
}

/// Whether an instruction computes on the register stack, and is noted as the last one that did.
pub fn computes(code: Code) -> bool {
    computing(code).is_some()
}

/// Whether the memory operand of an instruction that [computes](computes()) is stored to.
pub fn stores(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        Fst_m32fp | Fstp_m32fp | Fisttp_m32int | Fist_m32int | Fistp_m32int | Fstp_m80fp | Fisttp_m64int
    ) || matches!(code, Fst_m64fp | Fstp_m64fp | Fisttp_m16int | Fist_m16int | Fistp_m16int | Fbstp_m80bcd)
        || code == Fistp_m64int
}

/// The 11 bits that FOP keeps are of `opcode`: first byte and ModRM, the latter's register number 0 or no matter.
#[rustfmt::skip]
fn computing(code: Code) -> Option<Exec> {
    Some(match code {
        Code::Fadd_m32fp => load::<u32, 0xD800>,
        Code::Fmul_m32fp => load::<u32, 0xD808>,
        Code::Fcom_m32fp => load::<u32, 0xD810>,
        Code::Fcomp_m32fp => load::<u32, 0xD818>,
        Code::Fsub_m32fp => load::<u32, 0xD820>,
        Code::Fsubr_m32fp => load::<u32, 0xD828>,
        Code::Fdiv_m32fp => load::<u32, 0xD830>,
        Code::Fdivr_m32fp => load::<u32, 0xD838>,
        Code::Fadd_st0_sti => register::<0xD8C0>,
        Code::Fmul_st0_sti => register::<0xD8C8>,
        Code::Fcom_st0_sti => register::<0xD8D0>,
        Code::Fcomp_st0_sti => register::<0xD8D8>,
        Code::Fsub_st0_sti => register::<0xD8E0>,
        Code::Fsubr_st0_sti => register::<0xD8E8>,
        Code::Fdiv_st0_sti => register::<0xD8F0>,
        Code::Fdivr_st0_sti => register::<0xD8F8>,

        Code::Fld_m32fp => load::<u32, 0xD900>,
        Code::Fst_m32fp => store::<u32, 0xD910>,
        Code::Fstp_m32fp => store::<u32, 0xD918>,
        Code::Fld_sti => register::<0xD9C0>,
        Code::Fxch_st0_sti => register::<0xD9C8>,
        Code::Fnop => register::<0xD9D0>,
        Code::Fstpnce_sti => register::<0xD9D8>,
        Code::Fchs => register::<0xD9E0>,
        Code::Fabs => register::<0xD9E1>,
        Code::Ftst => register::<0xD9E4>,
        Code::Fxam => register::<0xD9E5>,
        Code::Fld1 => register::<0xD9E8>,
        Code::Fldl2t => register::<0xD9E9>,
        Code::Fldl2e => register::<0xD9EA>,
        Code::Fldpi => register::<0xD9EB>,
        Code::Fldlg2 => register::<0xD9EC>,
        Code::Fldln2 => register::<0xD9ED>,
        Code::Fldz => register::<0xD9EE>,
        Code::F2xm1 => register::<0xD9F0>,
        Code::Fyl2x => register::<0xD9F1>,
        Code::Fptan => register::<0xD9F2>,
        Code::Fpatan => register::<0xD9F3>,
        Code::Fxtract => register::<0xD9F4>,
        Code::Fprem1 => register::<0xD9F5>,
        Code::Fdecstp => register::<0xD9F6>,
        Code::Fincstp => register::<0xD9F7>,
        Code::Fprem => register::<0xD9F8>,
        Code::Fyl2xp1 => register::<0xD9F9>,
        Code::Fsqrt => register::<0xD9FA>,
        Code::Fsincos => register::<0xD9FB>,
        Code::Frndint => register::<0xD9FC>,
        Code::Fscale => register::<0xD9FD>,
        Code::Fsin => register::<0xD9FE>,
        Code::Fcos => register::<0xD9FF>,

        Code::Fiadd_m32int => load::<u32, 0xDA00>,
        Code::Fimul_m32int => load::<u32, 0xDA08>,
        Code::Ficom_m32int => load::<u32, 0xDA10>,
        Code::Ficomp_m32int => load::<u32, 0xDA18>,
        Code::Fisub_m32int => load::<u32, 0xDA20>,
        Code::Fisubr_m32int => load::<u32, 0xDA28>,
        Code::Fidiv_m32int => load::<u32, 0xDA30>,
        Code::Fidivr_m32int => load::<u32, 0xDA38>,
        Code::Fcmovb_st0_sti => with_flags::<0xDAC0>,
        Code::Fcmove_st0_sti => with_flags::<0xDAC8>,
        Code::Fcmovbe_st0_sti => with_flags::<0xDAD0>,
        Code::Fcmovu_st0_sti => with_flags::<0xDAD8>,
        Code::Fucompp => register::<0xDAE9>,

        Code::Fild_m32int => load::<u32, 0xDB00>,
        Code::Fisttp_m32int => store::<u32, 0xDB08>,
        Code::Fist_m32int => store::<u32, 0xDB10>,
        Code::Fistp_m32int => store::<u32, 0xDB18>,
        Code::Fld_m80fp => load::<Tword, 0xDB28>,
        Code::Fstp_m80fp => store::<Tword, 0xDB38>,
        Code::Fcmovnb_st0_sti => with_flags::<0xDBC0>,
        Code::Fcmovne_st0_sti => with_flags::<0xDBC8>,
        Code::Fcmovnbe_st0_sti => with_flags::<0xDBD0>,
        Code::Fcmovnu_st0_sti => with_flags::<0xDBD8>,
        Code::Fucomi_st0_sti => with_flags::<0xDBE8>,
        Code::Fcomi_st0_sti => with_flags::<0xDBF0>,

        Code::Fadd_m64fp => load::<u64, 0xDC00>,
        Code::Fmul_m64fp => load::<u64, 0xDC08>,
        Code::Fcom_m64fp => load::<u64, 0xDC10>,
        Code::Fcomp_m64fp => load::<u64, 0xDC18>,
        Code::Fsub_m64fp => load::<u64, 0xDC20>,
        Code::Fsubr_m64fp => load::<u64, 0xDC28>,
        Code::Fdiv_m64fp => load::<u64, 0xDC30>,
        Code::Fdivr_m64fp => load::<u64, 0xDC38>,
        Code::Fadd_sti_st0 => register::<0xDCC0>,
        Code::Fmul_sti_st0 => register::<0xDCC8>,
        Code::Fcom_st0_sti_DCD0 => register::<0xDCD0>,
        Code::Fcomp_st0_sti_DCD8 => register::<0xDCD8>,
        Code::Fsubr_sti_st0 => register::<0xDCE0>,
        Code::Fsub_sti_st0 => register::<0xDCE8>,
        Code::Fdivr_sti_st0 => register::<0xDCF0>,
        Code::Fdiv_sti_st0 => register::<0xDCF8>,

        Code::Fld_m64fp => load::<u64, 0xDD00>,
        Code::Fisttp_m64int => store::<u64, 0xDD08>,
        Code::Fst_m64fp => store::<u64, 0xDD10>,
        Code::Fstp_m64fp => store::<u64, 0xDD18>,
        Code::Ffree_sti => register::<0xDDC0>,
        Code::Fxch_st0_sti_DDC8 => register::<0xDDC8>,
        Code::Fst_sti => register::<0xDDD0>,
        Code::Fstp_sti => register::<0xDDD8>,
        Code::Fucom_st0_sti => register::<0xDDE0>,
        Code::Fucomp_st0_sti => register::<0xDDE8>,

        Code::Fiadd_m16int => load::<u16, 0xDE00>,
        Code::Fimul_m16int => load::<u16, 0xDE08>,
        Code::Ficom_m16int => load::<u16, 0xDE10>,
        Code::Ficomp_m16int => load::<u16, 0xDE18>,
        Code::Fisub_m16int => load::<u16, 0xDE20>,
        Code::Fisubr_m16int => load::<u16, 0xDE28>,
        Code::Fidiv_m16int => load::<u16, 0xDE30>,
        Code::Fidivr_m16int => load::<u16, 0xDE38>,
        Code::Faddp_sti_st0 => register::<0xDEC0>,
        Code::Fmulp_sti_st0 => register::<0xDEC8>,
        Code::Fcomp_st0_sti_DED0 => register::<0xDED0>,
        Code::Fcompp => register::<0xDED9>,
        Code::Fsubrp_sti_st0 => register::<0xDEE0>,
        Code::Fsubp_sti_st0 => register::<0xDEE8>,
        Code::Fdivrp_sti_st0 => register::<0xDEF0>,
        Code::Fdivp_sti_st0 => register::<0xDEF8>,

        Code::Fild_m16int => load::<u16, 0xDF00>,
        Code::Fisttp_m16int => store::<u16, 0xDF08>,
        Code::Fist_m16int => store::<u16, 0xDF10>,
        Code::Fistp_m16int => store::<u16, 0xDF18>,
        Code::Fbld_m80bcd => load::<Tword, 0xDF20>,
        Code::Fild_m64int => load::<u64, 0xDF28>,
        Code::Fbstp_m80bcd => store::<Tword, 0xDF30>,
        Code::Fistp_m64int => store::<u64, 0xDF38>,
        Code::Ffreep_sti => register::<0xDFC0>,
        Code::Fxch_st0_sti_DFC8 => register::<0xDFC8>,
        Code::Fstp_sti_DFD0 => register::<0xDFD0>,
        Code::Fstp_sti_DFD8 => register::<0xDFD8>,
        Code::Fucomip_st0_sti => with_flags::<0xDFE8>,
        Code::Fcomip_st0_sti => with_flags::<0xDFF0>,
        _ => return None,
    })
}

/// What an x87 instruction loads or stores.
trait Operand: Sized {
    fn load(cpu: &mut Cpu, insn: &Insn) -> Step<Scratch>;
    fn store(cpu: &mut Cpu, insn: &Insn, memory: &Scratch) -> Step;
}

macro_rules! operand {
    ($($width:ty)*) => {$(
        impl Operand for $width {
            #[inline(always)]
            fn load(cpu: &mut Cpu, insn: &Insn) -> Step<Scratch> {
                Ok(Scratch(cpu.load::<Self>(insn)?.to_bytes()))
            }

            #[inline(always)]
            fn store(cpu: &mut Cpu, insn: &Insn, memory: &Scratch) -> Step {
                cpu.store(insn, Self::from_bytes(&memory.0))
            }
        }
    )*};
}

operand! { u16 u32 u64 }

/// Ten bytes: extended precision or packed decimal.
struct Tword;

impl Tword {
    const BYTES: usize = 10;
}

impl Operand for Tword {
    fn load(cpu: &mut Cpu, insn: &Insn) -> Step<Scratch> {
        let mut memory = Scratch([0; 16]);
        cpu.load_bytes(insn.seg, cpu.offset(insn), &mut memory.0[..Self::BYTES])?;
        Ok(memory)
    }

    /// Two stores, as CPUs make them.
    fn store(cpu: &mut Cpu, insn: &Insn, memory: &Scratch) -> Step {
        let offset = cpu.offset(insn);
        let value = u128::from_le_bytes(memory.0);
        cpu.store_at(insn.seg, offset, value as u64, StoreKind::Cached)?;
        cpu.store_at(insn.seg, offset.wrapping_add(8), (value >> 64) as u16, StoreKind::Cached)
    }
}

/// Begins a waiting instruction.
#[inline(always)]
fn begin(cpu: &mut Cpu) -> Step {
    x87_usable(cpu)?;
    none_pending(cpu)
}

/// The opcode with the number of the one register operand that is not ST(0).
#[inline(always)]
fn with_register(opcode: u16, insn: &Insn) -> u16 {
    opcode | u16::from((insn.r[0] | insn.r[1]) & 7)
}

fn register<const OPCODE: u16>(cpu: &mut Cpu, insn: &Insn) -> Step {
    begin(cpu)?;
    native::x87(&mut cpu.fx, with_register(OPCODE, insn), &mut Scratch([0; 16]));
    remember(cpu, insn);
    Ok(())
}

fn with_flags<const OPCODE: u16>(cpu: &mut Cpu, insn: &Insn) -> Step {
    begin(cpu)?;
    let mut status = cpu.flags.status();
    native::x87_flags(&mut cpu.fx, with_register(OPCODE, insn), &mut status);
    cpu.flags.set_status(status);
    remember(cpu, insn);
    Ok(())
}

fn load<T: Operand, const OPCODE: u16>(cpu: &mut Cpu, insn: &Insn) -> Step {
    begin(cpu)?;
    let mut memory = T::load(cpu, insn)?;
    native::x87(&mut cpu.fx, OPCODE, &mut memory);
    cpu.fx.fdp = cpu.offset(insn);
    remember(cpu, insn);
    Ok(())
}

fn store<T: Operand, const OPCODE: u16>(cpu: &mut Cpu, insn: &Insn) -> Step {
    begin(cpu)?;
    let before = cpu.fx;
    let mut memory = Scratch([0; 16]);
    native::x87(&mut cpu.fx, OPCODE, &mut memory);
    // An unmasked exception of these kinds keeps the operand from being stored; its address is not even looked at.
    if cpu.fx.fsw & !cpu.fx.fcw & (fsw::IE | fsw::OE | fsw::UE) == 0
        && let Err(trap) = T::store(cpu, insn, &memory)
    {
        cpu.fx = before;
        return Err(trap);
    }
    cpu.fx.fdp = cpu.offset(insn);
    remember(cpu, insn);
    Ok(())
}

/// Notes where the instruction was, and which, if it left an unmasked exception: as CPUs do whose fopcode compatibility mode
/// is off. Selectors are deprecated and always 0.
#[inline(always)]
fn remember(cpu: &mut Cpu, insn: &Insn) {
    cpu.fx.fip = cpu.rip().wrapping_sub(u64::from(insn.len));
    if cpu.fx.fsw & fsw::ES != 0 {
        remember_opcode(cpu, insn);
    }
}

/// Reads the opcode again: the decoded form no longer has its addressing mode.
#[cold]
fn remember_opcode(cpu: &mut Cpu, insn: &Insn) {
    const CS: u8 = 1;
    let mut bytes = [0; 15];
    let len = usize::from(insn.len).min(15);
    let seg = if cpu.long { FLAT } else { CS };
    if cpu.load_bytes(seg, cpu.fx.fip, &mut bytes[..len]).is_ok()
        && let Some(at) = bytes[..len - 1].iter().position(|b| b & 0xF8 == 0xD8)
    {
        cpu.fx.fop = u16::from(bytes[at] & 7) << 8 | u16::from(bytes[at + 1]);
    }
}
