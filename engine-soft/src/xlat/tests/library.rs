//! Code that one machine leaves for others.

use engine::CodeStock;

use super::*;

/// A library of what a vCPU has run after so many instructions.
fn left_after(program: &[u8], instructions: u64, haste: Haste) -> CodeStock {
    let mut cpu = cpu(program, Some(haste));
    assert_eq!(cpu.run(instructions), Stop::Budget);
    let stock = CodeStock::default();
    let shared = &mut cpu.shared;
    std::mem::take(&mut shared.blocks).leave_to(&stock, &shared.ram, cpu.model);
    stock
}

fn translations(cpu: &Cpu) -> usize {
    cpu.shared.blocks.translator.as_ref().expect("asked for").translations.len()
}

/// A vCPU that interprets, and one that begins with what another one has left.
fn beside(stock: &CodeStock, program: &[u8], haste: Haste) -> (Cpu, Cpu) {
    let (interprets, mut goes_on) = (cpu(program, None), cpu(program, Some(haste)));
    goes_on.shared.blocks.take_from(stock, goes_on.model);
    (interprets, goes_on)
}

/// A vCPU that runs what another one has left, beside one that interprets.
fn goes_on_with(stock: &CodeStock, program: &[u8], haste: Haste, turns: usize) -> Cpu {
    let (mut a, mut b) = beside(stock, program, haste);
    for turn in 0..turns {
        let budget = 1 + (turn as u64 * 37) % 211;
        assert_eq!(a.run(budget), b.run(budget), "{haste:?}, turn {turn}");
        assert_eq!(all(&mut a), all(&mut b), "{haste:?}, turn {turn}");
    }
    b
}

#[test]
fn code_that_another_has_left_is_run_without_a_translation() {
    let stock = left_after(&program(), 50_000, Haste::AtOnce);
    let (mut a, mut b) = beside(&stock, &program(), Haste::AtOnce);
    assert_eq!(a.run(40_000), b.run(40_000));
    assert_eq!(all(&mut a), all(&mut b));
    assert!(translations(&b) <= 1 && b.shared.blocks.borrows(CODE));
    // Turns that end within blocks make others, and these want to be translated.
    assert!(translations(&goes_on_with(&stock, &program(), Haste::AtOnce, 200)) > 0);
    goes_on_with(&stock, &program(), Haste::Warm, 200);
    for seed in 1..4 {
        goes_on_with(&stock, &program(), Haste::Stressed(seed), 200);
        let left = left_after(&program(), 20_000, Haste::Stressed(seed));
        goes_on_with(&left, &program(), Haste::Stressed(seed + 1), 200);
    }
}

/// The page holds another program by now.
#[test]
fn code_that_is_another_by_now_is_not_borrowed() {
    let stock = left_after(&program(), 50_000, Haste::AtOnce);
    let mut other = program();
    // inc rax becomes dec rax.
    assert_eq!(other[..3], [0x48, 0xFF, 0xC0]);
    other[2] = 0xC8;
    let second = goes_on_with(&stock, &other, Haste::AtOnce, 200);
    assert!(translations(&second) > 0 && !second.shared.blocks.borrows(CODE));
}

/// Counts, and when a word says so patches an instruction ahead on its own page.
#[test]
fn borrowed_code_that_changes_is_given_back() {
    let code = assembled(|a| {
        let (mut top, mut on, mut patched) = (a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut top)?;
        a.inc(rax)?;
        a.cmp(eax, dword_ptr(rbx + 0x1000))?;
        a.jne(on)?;
        a.lea(rsi, qword_ptr(patched))?;
        a.mov(byte_ptr(rsi + 1), al)?;
        a.set_label(&mut on)?;
        a.mov(ecx, ecx)?;
        a.jmp(patched)?;
        a.set_label(&mut patched)?;
        a.mov(dl, 0x11)?;
        a.add(r12, rdx)?;
        a.jmp(top)
    });
    let stock = left_after(&code, 3000, Haste::AtOnce);
    for haste in [Haste::Warm, Haste::AtOnce, Haste::Stressed(5)] {
        let (mut a, mut b) = beside(&stock, &code, haste);
        for cpu in [&mut a, &mut b] {
            cpu.poke(DATA + 0x1000, &400_u32.to_le_bytes());
        }
        for turn in 0..60 {
            assert_eq!(a.run(101), b.run(101), "{haste:?}, turn {turn}");
            assert_eq!(all(&mut a), all(&mut b), "{haste:?}, turn {turn}");
            assert!(turn != 20 || haste != Haste::Warm || b.shared.blocks.borrows(CODE));
        }
        assert!(!b.shared.blocks.borrows(CODE) && translations(&b) > 0, "{haste:?}");
    }
    // What another one has given back is there for the next.
    assert_eq!(translations(&goes_on_with(&stock, &code, Haste::Warm, 20)), 0);
}

/// A device has written where borrowed code was.
#[test]
fn borrowed_code_that_a_device_overwrites_is_given_back() {
    let stock = left_after(&program(), 50_000, Haste::AtOnce);
    let (mut a, mut b) = beside(&stock, &program(), Haste::Warm);
    for turn in 0..60 {
        assert_eq!(a.run(101), b.run(101), "turn {turn}");
        assert_eq!(all(&mut a), all(&mut b), "turn {turn}");
        if turn == 30 {
            assert!(b.shared.blocks.borrows(CODE));
            a.poke(CODE + 2, &[0xC8]);
            b.poke(CODE + 2, &[0xC8]);
        }
    }
    assert!(!b.shared.blocks.borrows(CODE));
}
