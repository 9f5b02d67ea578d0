mod library;

use std::ops::Range;

use engine::ExitKind;
use engine::event::Event;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::Haste;
use crate::cpu::Cpu;
use crate::rig::{CODE, DATA, STACK};
use crate::run::Stop;

/// An address that has no memory.
const HOLE: u64 = 0x2000_0000;

/// A vCPU with a program at its instruction pointer.
pub(super) fn cpu(program: &[u8], haste: Option<Haste>) -> Cpu {
    let mut cpu = Cpu::for_test();
    if let Some(haste) = haste {
        cpu.shared.blocks.translate(haste);
    }
    cpu.poke(CODE, program);
    cpu.poke(DATA, &[0; 0x2000]);
    cpu.gpr[3] = DATA;
    cpu
}

/// Lets the first two pages of data have each other's memory: what runs over the end of a page is somewhere else.
fn scatter(cpu: &mut Cpu) {
    const DIRECTORY: u64 = 0x3000;
    const TABLE: u64 = 0x8000;
    for n in 0..512 {
        let page = DATA + ((if n < 2 { n ^ 1 } else { n }) << 12);
        cpu.poke(TABLE + 8 * n, &(page | 0x67).to_le_bytes());
    }
    cpu.poke(DIRECTORY + (DATA >> 21) * 8, &(TABLE | 0x27).to_le_bytes());
    cpu.flush_tlb();
}

/// Registers, flags, whether interrupts are held off, instructions, memory, x87 and SSE, events.
pub(super) type All = (Vec<u64>, (u64, bool), u64, Vec<u8>, Vec<u8>, Vec<Event>);

pub(super) fn all(cpu: &mut Cpu) -> All {
    let mut memory = vec![0; 0x3000];
    cpu.peek_at(DATA, &mut memory);
    let log = std::mem::take(&mut cpu.shared.log).events().collect::<Vec<_>>();
    let flags = (cpu.flags.get(), cpu.shadow);
    (cpu.gpr[..18].to_vec(), flags, cpu.shared.retired, memory, cpu.fx.bytes().to_vec(), log)
}

/// Runs a program in turns of uneven length, interpreted and translated, and compares after each.
pub(super) fn the_same(program: &[u8], turns: usize, watched: Option<Range<u64>>) {
    let hastes = [Haste::Warm, Haste::AtOnce, Haste::Stressed(1), Haste::Stressed(2), Haste::Stressed(3)];
    for (haste, scattered) in hastes.into_iter().flat_map(|haste| [(haste, false), (haste, true)]) {
        let (mut a, mut b) = (cpu(program, None), cpu(program, Some(haste)));
        for cpu in [&mut a, &mut b] {
            if scattered {
                scatter(cpu);
            }
            cpu.shared.watch.ranges.extend(watched.clone());
            let on = cpu.shared.watch.is_on();
            cpu.shared.blocks.set_watching(on);
        }
        for turn in 0..turns {
            let budget = 1 + (turn as u64 * 37) % 211;
            assert_eq!(a.run(budget), b.run(budget), "{haste:?}, {scattered}, turn {turn}");
            assert_eq!(all(&mut a), all(&mut b), "{haste:?}, {scattered}, turn {turn}");
        }
    }
}

pub(super) fn assembled(emit: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut asm = CodeAssembler::new(64).expect("64 bits");
    emit(&mut asm).expect("instructions");
    asm.assemble(CODE).expect("code")
}

/// A loop whose every round has another number in R12.
fn over_numbers(round: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    assembled(|a| {
        let mut top = a.create_label();
        a.mov(r12, 0x1234_5678_9ABC_DEF1_u64)?;
        a.set_label(&mut top)?;
        a.imul_2(r12, r12)?;
        a.add(r12, 0x77)?;
        round(a)?;
        a.jmp(top)
    })
}

/// A bit of everything: calls, memory, flags that live long, high bytes, strings, SSE, atomics.
fn program() -> Vec<u8> {
    assembled(|a| {
        let (mut top, mut function, mut skip) = (a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut top)?;
        a.inc(rax)?;
        a.imul_3(rcx, rax, 0x1234_5671)?;
        a.rol(rcx, 13)?;
        a.mov(rbx + 8, rcx)?;
        a.mov(ah, cl)?;
        a.add(qword_ptr(rbx + rax * 1_i32), rcx)?;
        a.call(function)?;
        a.lock().xadd(qword_ptr(rbx + 0x100), rdx)?;
        a.test(al, 3)?;
        a.jne(skip)?;
        a.lea(rdi, rbx + 0x300)?;
        a.mov(r9d, 40)?;
        a.mov(rcx, r9)?;
        a.rep().stosb()?;
        a.sfence()?;
        a.set_label(&mut skip)?;
        a.movd(xmm3, eax)?;
        a.paddd(xmm2, xmm3)?;
        a.cvtsi2sd(xmm4, rax)?;
        a.sqrtsd(xmm4, xmm4)?;
        a.movupd(xmmword_ptr(rbx + 0x401), xmm4)?;
        a.movdqa(xmmword_ptr(rbx + 0x420), xmm2)?;
        a.and(eax, 0x7F)?;
        a.jmp(top)?;
        a.set_label(&mut function)?;
        a.push(rax)?;
        a.shr(ecx, 3)?;
        a.setb(dl)?;
        a.adc(r10, rcx)?;
        a.xor(edx, edx)?;
        a.mov(eax, r10d)?;
        a.mov(r15d, 77)?;
        a.div(r15d)?;
        a.xchg(qword_ptr(rbx + 0x200), rdx)?;
        a.mov(r11, rdx)?;
        a.bsf(r8, r11)?;
        a.cmovne(r8, r10)?;
        a.pop(rax)?;
        a.ret()
    })
}

#[test]
fn programs_run_the_same_to_the_instruction() {
    the_same(&program(), 200, None);
}

#[test]
fn events_are_the_same() {
    the_same(&program(), 100, Some(DATA..DATA + 0x1000));
}

#[test]
fn warm_code_is_translated_and_linked() {
    let mut cpu = cpu(&program(), Some(Haste::Warm));
    assert_eq!(cpu.run(10_000), Stop::Budget);
    let translator = cpu.shared.blocks.translator.as_ref().expect("asked for");
    assert!(translator.translations.len() >= 4, "{}", translator.translations.len());
}

/// A loop that patches an instruction of its own in the next block, and one in its own.
#[test]
fn code_that_changes_itself_is_seen_at_once() {
    let code = assembled(|a| {
        let (mut top, mut patched) = (a.create_label(), a.create_label());
        a.set_label(&mut top)?;
        a.inc(rax)?;
        a.lea(rsi, qword_ptr(patched))?;
        a.mov(byte_ptr(rsi + 1), al)?;
        a.mov(ecx, ecx)?;
        a.jmp(patched)?;
        a.set_label(&mut patched)?;
        a.mov(dl, 0x11)?;
        a.add(r12, rdx)?;
        a.jmp(top)
    });
    the_same(&code, 60, None);
}

/// The stack walks off its page while the loop runs: every push and call is across pages now and then.
#[test]
fn accesses_across_pages_are_the_same() {
    let code = assembled(|a| {
        let mut top = a.create_label();
        a.mov(rsp, DATA + 0x1005)?;
        a.set_label(&mut top)?;
        a.push(rax)?;
        a.add(rax, 0x777)?;
        a.mov(rcx, qword_ptr(rsp + 2))?;
        a.xor(qword_ptr(rsp), rcx)?;
        a.pop(rdx)?;
        a.movdqu(xmm1, xmmword_ptr(rsp - 7))?;
        a.movdqu(xmmword_ptr(rsp - 9), xmm1)?;
        a.jmp(top)
    });
    the_same(&code, 40, None);
    assert_eq!(STACK & 7, 0);
}

/// Divisions by everything: what fits, what does not, and 0 and -1, whose faults end in a shutdown here.
#[test]
fn divisions_are_the_same() {
    let code = over_numbers(|a| {
        a.mov(rax, r12)?;
        a.cqo()?;
        a.mov(rcx, r12)?;
        a.sar(rcx, 37)?;
        a.or(rcx, 5)?;
        a.cmp(rax, 3)?;
        a.idiv(rcx)?;
        a.adc(r13, rax)?;
        a.mov(qword_ptr(rbx), rdx)?;
        a.mov(dword_ptr(rbx + 8), 77)?;
        a.xor(edx, edx)?;
        a.mov(eax, r12d)?;
        a.cdq()?;
        a.stc()?;
        a.idiv(dword_ptr(rbx + 8))?;
        a.adc(r13, rdx)?;
        a.mov(edx, 3)?;
        a.mov(r15, r12)?;
        a.or(r15, 4)?;
        a.div(r15)?;
        a.xor(r13, rax)?;
        a.mov(rcx, u64::MAX)?;
        a.mov(rax, r12)?;
        a.shr(rax, 1)?;
        a.cqo()?;
        a.idiv(rcx)?;
        a.sub(r13, rax)
    });
    the_same(&code, 60, None);
    the_same(&assembled(|a| a.div(rcx)), 3, None);
    the_same(&assembled(|a| a.idiv(rcx)), 3, None);
}

/// The register stack across everything that takes it away: other instructions of the interpreter, MMX, SSE, unmasked
/// exceptions, the end of a turn.
#[test]
fn the_register_stack_is_the_same() {
    let code = assembled(|a| {
        let (mut top, mut on) = (a.create_label(), a.create_label());
        a.mov(dword_ptr(rbx + 16), 0x037F)?;
        a.set_label(&mut top)?;
        a.inc(rax)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.fild(qword_ptr(rbx))?;
        a.fld1()?;
        a.fadd_2(st0, st1)?;
        a.fsqrt()?;
        a.fst(qword_ptr(rbx + 24))?;
        a.fstp(tbyte_ptr(rbx + 0xFFA))?;
        a.fldpi()?;
        a.fcomi(st0, st1)?;
        a.cmovb(r8, rax)?;
        a.fcmovb(st0, st1)?;
        a.fdivp(st1, st0)?;
        a.fnstsw(ax)?;
        a.mov(r9, rax)?;
        a.cvtsi2sd(xmm1, rax)?;
        a.movsd_2(qword_ptr(rbx + 64), xmm1)?;
        a.fmul(qword_ptr(rbx + 64))?;
        a.fistp(dword_ptr(rbx + 72))?;
        a.mov(eax, dword_ptr(rbx))?;
        a.test(al, 15)?;
        a.jne(on)?;
        a.fldz()?;
        a.fdivr_2(st0, st0)?;
        a.fstp(st0)?;
        a.fnstcw(word_ptr(rbx + 80))?;
        a.movd(mm3, eax)?;
        a.paddd(mm3, mm3)?;
        a.emms()?;
        a.fldcw(word_ptr(rbx + 16))?;
        a.set_label(&mut on)?;
        a.jmp(top)
    });
    the_same(&code, 100, None);
}

/// Multiplications and shifts whose undefined flags only an access shows that leaves for the machine: every load is of a
/// device.
#[test]
fn a_device_sees_the_flags_of_the_interpreter() {
    let code = assembled(|a| {
        let mut top = a.create_label();
        a.mov(r12, 0x1234_5678_9ABC_DEF1_u64)?;
        a.mov(rsi, HOLE)?;
        a.set_label(&mut top)?;
        a.imul_2(r12, r12)?;
        a.mov(r8, qword_ptr(rsi))?;
        a.xor(r12, r8)?;
        a.imul_3(r15d, r12d, 0x777)?;
        a.mov(eax, r15d)?;
        a.movzx(r9d, byte_ptr(rsi + 8))?;
        a.mov(r15, qword_ptr(rsi + 16))?;
        a.add(r9, qword_ptr(rsi + 24))?;
        a.mul(r12)?;
        a.lea(r10, rax + r9)?;
        a.mov(rax, qword_ptr(rsi + 32))?;
        a.sub(r10, rdx)?;
        a.shl(r10, 3)?;
        a.mov(r8, qword_ptr(rsi + 40))?;
        a.cmp(r8, r10)?;
        a.shr(r8, 1)?;
        a.cmp(r8, qword_ptr(rsi + 48))?;
        a.sar(r8, 5)?;
        a.and(qword_ptr(rsi + 56), r8)?;
        a.or(r12, 1)?;
        a.jmp(top)
    });
    for haste in [Haste::Warm, Haste::AtOnce, Haste::Stressed(1), Haste::Stressed(2)] {
        let (mut a, mut b) = (cpu(&code, None), cpu(&code, Some(haste)));
        let mut answer = 0x9E37_79B9_7F4A_7C15_u64;
        let mut exits = 0;
        for turn in 0..3000 {
            let stop = a.run(100);
            assert_eq!(stop, b.run(100), "{haste:?}, turn {turn}");
            assert_eq!(all(&mut a), all(&mut b), "{haste:?}, turn {turn}, {stop:?}");
            if let Stop::Exit(ExitKind::MmioRead { .. }) = stop {
                exits += 1;
                answer = answer.wrapping_mul(answer | 5).rotate_left(7);
                a.answer(answer);
                b.answer(answer);
            }
        }
        assert!(exits > 1000, "{exits}");
    }
}

/// Repeated strings of all widths and counts, across pages and of nothing, onto themselves, forwards and backwards.
#[test]
fn strings_are_the_same() {
    let code = over_numbers(|a| {
        for width in [1, 2, 4, 8] {
            for moves in [false, true] {
                a.mov(rax, r12)?;
                a.mov(ecx, eax)?;
                a.shr(ecx, 13)?;
                a.and(ecx, 0x1F)?;
                a.mov(rdi, r12)?;
                a.shr(rdi, 20)?;
                a.and(edi, 0xFFF)?;
                a.lea(rdi, rdi + DATA as i32 + 0x400)?;
                a.lea(rsi, rbx + 0x17)?;
                a.cmp(rax, 3)?;
                match (width, moves) {
                    (1, false) => a.rep().stosb()?,
                    (2, false) => a.rep().stosw()?,
                    (4, false) => a.rep().stosd()?,
                    (_, false) => a.rep().stosq()?,
                    (1, true) => a.rep().movsb()?,
                    (2, true) => a.repne().movsw()?,
                    (4, true) => a.rep().movsd()?,
                    (_, true) => a.rep().movsq()?,
                }
                a.adc(r13, rdi)?;
                a.add(r13, rsi)?;
            }
        }
        a.lea(rdi, rbx + 0x1000)?;
        a.mov(ecx, 512)?;
        a.rep().stosq()?;
        a.mov(qword_ptr(rbx + 0x1008), r12)?;
        a.lea(rsi, rbx + 0x1000)?;
        a.lea(rdi, rbx + 0x1008)?;
        a.mov(ecx, 300)?;
        a.rep().movsb()?;
        a.std()?;
        a.mov(ecx, 3)?;
        a.lea(rdi, rbx + 0x100)?;
        a.rep().stosq()?;
        a.cld()
    });
    the_same(&code, 150, None);
    the_same(&code, 60, Some(DATA..DATA + 0x1000));
    // Over the end of the address space.
    the_same(
        &assembled(|a| {
            a.mov(rdi, -0x2000_i64 as u64)?;
            a.mov(ecx, 0x480)?;
            a.rep().stosq()
        }),
        10,
        None,
    );
    // A count of which the last bytes alone would fit.
    the_same(
        &assembled(|a| {
            a.mov(rcx, 1_u64 << 61 | 1)?;
            a.mov(rdi, DATA)?;
            a.rep().stosq()
        }),
        30,
        None,
    );
}

/// R9 and the stack walk over the end of a page; block by block, addresses near R9 or RSP come about in another way, and it is another
/// access that is the first to reach the next page.
fn neighbours() -> Vec<u8> {
    assembled(|a| {
        let (mut top, mut again) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.lea(r9, rbx + 0xF00)?;
        a.mov(rsp, DATA + 0x10C0)?;
        a.set_label(&mut top)?;
        a.add(r12, 0x1235)?;
        let block = |a: &mut CodeAssembler| {
            let mut next = a.create_label();
            a.jmp(next)?;
            a.set_label(&mut next)
        };
        a.mov(rdi, r9)?;
        a.mov(rax, qword_ptr(rdi))?;
        a.sub(rdi, 0x20)?;
        a.add(qword_ptr(rdi + 1), rax)?;
        block(a)?;
        a.lea(rsi, r9 + 0x40)?;
        a.add(r13, qword_ptr(rsi - 0x40))?;
        a.movsx(ecx, word_ptr(rsi - 4))?;
        a.xor(dword_ptr(rsi + 4), r13d)?;
        a.imul_2(r12, qword_ptr(rsi - 0x40))?;
        block(a)?;
        a.mov(rax, qword_ptr(r9))?;
        a.add(r9, 0x30)?;
        a.adc(qword_ptr(r9), r12)?;
        a.sub(r9, 0x30)?;
        a.xor(word_ptr(r9 - 0x15), cx)?;
        block(a)?;
        a.mov(r10, r9)?;
        a.cmp(qword_ptr(r10 + 0x28), 5)?;
        a.mov(r10, qword_ptr(r10 + 0x30))?;
        a.lea(r10, rbx + 0x40)?;
        a.mov(qword_ptr(r10), rcx)?;
        a.add(r13, qword_ptr(r10 + 8))?;
        a.mov(rcx, qword_ptr(r10 + 0x10))?;
        block(a)?;
        a.lea(rdx, r9 + 0x38)?;
        a.lea(rdi, rbx + 0x50)?;
        a.sub(qword_ptr(rdi), r13)?;
        a.push(rdx)?;
        a.pop(rdi)?;
        a.sub(qword_ptr(rdi), r13)?;
        a.add(r13, qword_ptr(rdi + 8))?;
        block(a)?;
        a.mov(rdi, r9)?;
        a.mov(rax, qword_ptr(rdi))?;
        a.inc(rdi)?;
        a.neg(rax)?;
        a.mov(qword_ptr(rdi + 0x11), rax)?;
        block(a)?;
        a.mov(qword_ptr(rsp), rax)?;
        a.push(r8w)?;
        a.mov(qword_ptr(rsp + 0x12), r12)?;
        a.pop(r8w)?;
        block(a)?;
        a.mov(rsi, rsp)?;
        a.mov(qword_ptr(rsp - 8), r13)?;
        a.mov(rbp, r9)?;
        a.leave()?;
        a.mov(rax, qword_ptr(rsp + 8))?;
        a.xor(qword_ptr(rsp - 0x20), rax)?;
        a.mov(rsp, rsi)?;
        block(a)?;
        a.push(rbp)?;
        a.mov(rbp, rsp)?;
        a.push(r12)?;
        a.push(qword_ptr(rbp + 8))?;
        a.sub(rsp, 0x18)?;
        a.mov(qword_ptr(rbp - 0x20), r13)?;
        a.mov(rax, qword_ptr(rsp + 0x18))?;
        a.xor(r13, rax)?;
        a.mov(qword_ptr(rsp), rax)?;
        a.lea(rsp, rbp - 8)?;
        a.pop(r12)?;
        a.pop(rbp)?;
        block(a)?;
        a.add(r9, 5)?;
        a.sub(rsp, 3)?;
        a.lea(rax, rbx + 0x1080)?;
        a.cmp(r9, rax)?;
        a.jb(top)?;
        a.jmp(again)
    })
}

#[test]
fn accesses_near_one_another_are_the_same() {
    the_same(&neighbours(), 300, None);
    the_same(&neighbours(), 100, Some(DATA..DATA + 0x1000));
    the_same(&neighbours(), 100, Some(DATA + 0x1000..DATA + 0x2000));
}

/// Where a group lies in two pages every time, its block is translated without groups, and the old translation is out of use.
#[test]
fn accesses_that_are_in_two_pages_again_and_again_are_not_grouped() {
    let code = assembled(|a| {
        let mut top = a.create_label();
        a.lea(r9, rbx + 0xFFC)?;
        a.set_label(&mut top)?;
        a.add(r12, 0x1235)?;
        a.mov(rax, qword_ptr(r9 - 4))?;
        a.add(rax, r12)?;
        a.mov(qword_ptr(r9 + 4), rax)?;
        a.xor(qword_ptr(r9 - 12), rax)?;
        a.jmp(top)
    });
    the_same(&code, 100, None);
    let mut cpu = cpu(&code, Some(Haste::AtOnce));
    assert_eq!(cpu.run(10_000), Stop::Budget);
    let translator = cpu.shared.blocks.translator.as_ref().expect("asked for");
    let replaced: Vec<_> = translator.translations.iter().filter(|one| one.replaced).collect();
    assert_eq!(replaced.len(), 1, "the loop, which goes round a thousand times");
    assert!(replaced.iter().all(|one| one.misfits == super::MISFITS && one.block.header().alone.get()));
}

/// Flags on the stack, interrupts masked and not, selectors, bit strings, shifts by CL whose flags are seen, pairs of words.
#[test]
fn what_kernels_do_is_the_same() {
    let code = over_numbers(|a| {
        a.pushfq()?;
        a.pop(r9)?;
        a.cli()?;
        a.adc(r13, r9)?;
        a.pushfq()?;
        a.sti()?;
        a.pop(r10)?;
        a.mov(eax, ss)?;
        a.mov(r11, cs)?;
        a.add(r10, r11)?;
        a.prefetcht0(byte_ptr(rbx))?;
        for shift in 0..3 {
            a.mov(rcx, r12)?;
            a.shr(rcx, 40 + shift)?;
            a.mov(r8, r12)?;
            a.mov(r15, r12)?;
            a.cmp(r8, r10)?;
            for narrow in [false, true] {
                match (shift, narrow) {
                    (0, false) => a.shl(r8, cl)?,
                    (1, false) => a.shr(r8, cl)?,
                    (_, false) => a.sar(r8, cl)?,
                    (0, true) => a.shl(r15d, cl)?,
                    (1, true) => a.shr(r15d, cl)?,
                    (_, true) => a.sar(r15d, cl)?,
                }
                a.pushfq()?;
                a.pop(rdx)?;
                a.add(r13, rdx)?;
            }
            a.xor(r13, r8)?;
            a.add(r13, r15)?;
        }
        a.mov(rsi, r12)?;
        a.sar(rsi, 50)?;
        a.mov(r15, rsi)?;
        a.lea(rdi, rbx + 0x1000)?;
        a.cmp(rsi, 5)?;
        a.bt(qword_ptr(rdi), r15)?;
        a.adc(r13, r13)?;
        a.bts(qword_ptr(rdi + 8), rsi)?;
        a.adc(r13, r13)?;
        a.btr(qword_ptr(rdi), r15)?;
        a.btc(qword_ptr(rdi - 8), rsi)?;
        a.adc(r13, r13)?;
        a.mov(rax, qword_ptr(rbx + 0x40))?;
        a.mov(rdx, qword_ptr(rbx + 0x48))?;
        a.test(r12, 0x10)?;
        a.cmovne(rdx, r12)?;
        a.mov(rcx, r13)?;
        a.stc()?;
        a.cmpxchg16b(xmmword_ptr(rbx + 0x40))?;
        a.adc(r13, rax)?;
        a.xor(r13, rdx)
    });
    the_same(&code, 200, None);
    the_same(&code, 60, Some(DATA..DATA + 0x1000));
    let unaligned = assembled(|a| {
        a.mov(qword_ptr(rbx), rax)?;
        a.cmpxchg16b(xmmword_ptr(rbx + 8))
    });
    the_same(&unaligned, 3, None);
}
