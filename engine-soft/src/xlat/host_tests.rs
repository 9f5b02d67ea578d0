//! What the host is asked for: where it lacks BMI2, or has nothing beyond x86-64-v2, no translation uses it.

use engine::cpuid::CpuModel;
use iced_x86::code_asm::*;
use iced_x86::{CpuidFeature, Decoder, DecoderOptions, IcedError};

use super::body::{Setting, Source, translate};
use super::thunk::{self, Departure, Site, reason};
use crate::cpu::Cpu;
use crate::decode::decode;

extern "sysv64" fn execute(_: *mut Cpu, _: Site) -> Departure {
    Departure { reason: reason::NONE, detail: 0 }
}

/// An instruction of every kind that has a translation of its own.
fn program(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, qword_ptr(rdi + 8))?;
    a.add(qword_ptr(rsi + rcx * 4), rax)?;
    a.mov(ecx, dword_ptr(0x1234_5678))?;
    a.movzx(r9d, byte_ptr(r15))?;
    a.xchg(qword_ptr(rbx), rax)?;
    a.lock().cmpxchg(qword_ptr(rdi), rbx)?;
    a.lock().xadd(qword_ptr(rdi), rbx)?;
    a.shl(rax, cl)?;
    a.sar(dword_ptr(rdi), cl)?;
    a.shld(rax, rbx, cl)?;
    a.ror(r10, 3)?;
    a.bts(qword_ptr(rdi), 5)?;
    a.bsf(rax, rbx)?;
    a.bsr(eax, dword_ptr(rdi))?;
    a.popcnt(rax, qword_ptr(rdi))?;
    a.imul_3(rax, qword_ptr(rdi), 77)?;
    a.mul(qword_ptr(rdi))?;
    a.div(rbx)?;
    a.cmovne(rax, qword_ptr(rdi))?;
    a.setb(byte_ptr(rdi))?;
    a.push(rax)?;
    a.pop(r9)?;
    a.leave()?;
    a.movaps(xmm1, ptr(rdi))?;
    a.movdqu(ptr(rdi).gs(), xmm9)?;
    a.addsd(xmm3, qword_ptr(rdi))?;
    a.pshufd(xmm1, xmm2, 3)?;
    a.cvttsd2si(r9, xmm1)
}

/// Instructions of a translation.
fn translated(bmi2: bool) -> Vec<iced_x86::Instruction> {
    let mut a = CodeAssembler::new(64).expect("an assembler");
    program(&mut a).expect("a program");
    let bytes = a.assemble(0x1000).expect("code");
    let (mut insns, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let padded = [&bytes[at..], &[0x90; 15]].concat();
        let insn = decode(64, &padded, CpuModel::V2).expect("an instruction").insn;
        at += usize::from(insn.len);
        insns.push(insn);
    }
    let (thunks_code, thunks) = thunk::write(0x10_0000, execute, execute);
    let setting = Setting { thunks, watching: false, bmi2, alone: false, model: CpuModel::V2, stress: None };
    let source = Source { insns: &insns, bytes: &bytes, rip: 0x1000, sync: false, user: true };
    let code = translate(&source, 0x20_0000, 0, setting);
    let decoded = |bytes: &[u8]| Decoder::new(64, bytes, DecoderOptions::NONE).iter().collect::<Vec<_>>();
    [decoded(&thunks_code), decoded(&code.bytes)].concat()
}

fn uses(instructions: &[iced_x86::Instruction], feature: CpuidFeature) -> Vec<String> {
    let with = instructions.iter().filter(|i| i.cpuid_features().contains(&feature));
    with.map(ToString::to_string).collect()
}

#[test]
fn a_host_without_bmi2_is_asked_for_none() {
    use CpuidFeature::{AVX, AVX2, BMI1, BMI2, LZCNT};
    let with = translated(true);
    assert!(uses(&with, BMI2).len() > 20, "shifts by BMI2 where it is");
    let without = translated(false);
    assert!(!without.iter().any(iced_x86::Instruction::is_invalid));
    for feature in [BMI1, BMI2, LZCNT, AVX, AVX2] {
        assert_eq!(uses(&without, feature), [""; 0], "{feature:?}");
        assert!(feature == BMI2 || uses(&with, feature).is_empty(), "{feature:?}");
    }
}
