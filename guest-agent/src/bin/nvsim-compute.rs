//! What a guest computes for `ci/bench`: small programs of one kind of work each, as process 1 and nothing else.
//!
//! Each says `begin NAME`, works, and says `end NAME RESULT`. The host takes the time; results are the same everywhere.
#![expect(unsafe_code, reason = "x87 and string instructions, and the power switch")]

use std::arch::asm;
use std::hint::black_box;

/// A name and its work.
type Work = (&'static str, fn() -> u64);

const WORK: [Work; 11] = [
    ("hash", hash),
    ("table", table),
    ("sort", sort),
    ("copy", copy),
    ("calls", calls),
    ("indirect", indirect),
    ("sieve", sieve),
    ("saxpy", saxpy),
    ("x87", x87),
    ("string", string),
    ("divide", divide),
];

fn main() {
    for (name, work) in WORK {
        println!("begin {name}");
        let result = work();
        println!("end {name} {result:016x}");
    }
    println!("done");
    if std::process::id() == 1 {
        // SAFETY: no memory is involved; nothing is mounted that would have to be written.
        unsafe { libc::reboot(libc::RB_POWER_OFF) };
    }
}

/// xorshift64.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn filled(len: usize) -> Vec<u64> {
    let mut state = 88_172_645_463_325_252;
    (0..len).map(|_| random(&mut state)).collect()
}

/// FNV-1a, byte by byte.
fn hash() -> u64 {
    let bytes: Vec<u8> = filled(1 << 17).iter().flat_map(|word| word.to_le_bytes()).collect();
    (0..120).fold(0xCBF2_9CE4_8422_2325, |hash, _| {
        black_box(&bytes)
            .iter()
            .fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
    })
}

/// An open hash table of 32 MiB: each access misses.
fn table() -> u64 {
    const SIZE: usize = 1 << 22;
    let mut table = vec![0_u64; SIZE];
    let mut state = 1;
    let mut found = 0;
    for _ in 0..3_000_000 {
        let key = random(&mut state) % 2_000_000 + 1;
        let mut at = key.wrapping_mul(0x9E37_79B9_7F4A_7C15) as usize % SIZE;
        while table[at] != 0 && table[at] != key {
            at = (at + 1) % SIZE;
        }
        found += u64::from(table[at] == key);
        table[at] = key;
    }
    found
}

fn sort() -> u64 {
    (0..6).fold(0, |sum, _| {
        let mut words = black_box(filled(1 << 18));
        words.sort_unstable();
        sum.wrapping_mul(31) ^ words[words.len() / 3]
    })
}

/// The C library's memcpy.
fn copy() -> u64 {
    let from = filled(1 << 16);
    let mut to = vec![0; from.len()];
    for _ in 0..6000 {
        black_box(&mut to).copy_from_slice(black_box(&from));
    }
    to[12_345]
}

#[inline(never)]
fn fibonacci(n: u64) -> u64 {
    if n < 2 { n } else { black_box(fibonacci(n - 1)) + fibonacci(n - 2) }
}

fn calls() -> u64 {
    fibonacci(black_box(36))
}

/// Calls of eight functions in random order.
fn indirect() -> u64 {
    const FUNCTIONS: [fn(u64) -> u64; 8] = [
        |n| n + 1,
        |n| n ^ 0x55,
        |n| n.rotate_left(5),
        |n| n.wrapping_mul(3),
        |n| !n,
        |n| n.wrapping_sub(7),
        |n| n >> 1,
        u64::swap_bytes,
    ];
    let order = filled(4096);
    (0..4000).fold(1, |value, _| {
        black_box(&order).iter().fold(value, |value, &n| black_box(FUNCTIONS[n as usize & 7])(value))
    })
}

fn sieve() -> u64 {
    const LIMIT: usize = 2_000_000;
    (0..6).fold(0, |sum, _| {
        let mut composite = black_box(vec![false; LIMIT]);
        for n in 2..LIMIT {
            if !composite[n] {
                (n * n..LIMIT).step_by(n).for_each(|multiple| composite[multiple] = true);
            }
        }
        sum + composite.iter().filter(|&&composite| !composite).count() as u64
    })
}

/// Single-precision vectors, by the compiler's SSE.
fn saxpy() -> u64 {
    let x: Vec<f32> = (0..4096_u16).map(|n| f32::from(n) / 64.0).collect();
    let mut y = vec![1.0_f32; x.len()];
    for _ in 0..60_000 {
        for (y, x) in black_box(&mut y).iter_mut().zip(black_box(&x)) {
            *y = *x * 0.25 + *y * 0.75;
        }
    }
    y.iter().fold(0, |hash, y| (hash * 31) ^ u64::from(y.to_bits()))
}

/// The logistic map in 80 bits, and sums of an array of doubles.
fn x87() -> u64 {
    let values: Vec<f64> = (0..1000_u16).map(|n| 1.0 / (f64::from(n) + 1.5)).collect();
    let (mut x, rate) = (0.3_f64, 3.7_f64);
    for _ in 0..8000 {
        // SAFETY: reads the array and the two numbers, writes the one; the register stack is left as it was.
        unsafe {
            asm!(
                "fld qword ptr [{x}]",
                "2:",
                // x * rate * (1 - x), and a little of the array
                "fld1",
                "fsub st(0), st(1)",
                "fmulp st(1), st(0)",
                "fmul qword ptr [{rate}]",
                "fld qword ptr [{at}]",
                "fmul st(0), st(0)",
                "fstp qword ptr [{square}]",
                "add {at}, 8",
                "dec {left}",
                "jnz 2b",
                "fstp qword ptr [{x}]",
                x = in(reg) &raw mut x,
                rate = in(reg) &raw const rate,
                square = in(reg) &raw mut *black_box(&mut 0.0_f64),
                at = inout(reg) values.as_ptr() => _,
                left = inout(reg) values.len() / 4 => _,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            );
        }
    }
    x.to_bits()
}

/// REP MOVSB and REP STOSQ of the lengths that programs have, and REPNE SCASB as strlen.
fn string() -> u64 {
    let mut buffer = vec![1_u8; 16 << 10];
    let mut sum = 0;
    let mut state = 7;
    for _ in 0..400_000 {
        let (len, fill) = (random(&mut state) as usize % 1024, random(&mut state));
        let base = buffer.as_mut_ptr();
        let mut left = usize::MAX;
        // SAFETY: all three stay within the buffer's 16 KiB: a copy of less than 1 KiB from its begin to 4 KiB, a fill of
        // less than 1 KiB at 8 KiB, and a search from its begin that ends at the zero put there before.
        unsafe {
            base.add(2048).write(0);
            asm!("rep movsb", inout("rcx") len => _, inout("rsi") base => _, inout("rdi") base.add(4096) => _);
            asm!("rep stosq", inout("rcx") len / 8 => _, inout("rdi") base.add(8192) => _, in("rax") fill);
            if fill % 16 == 0 {
                asm!("repne scasb", inout("rcx") left, inout("rdi") base => _, in("al") 0_u8);
            }
        }
        sum += left as u64 ^ u64::from(buffer[8192]);
    }
    sum
}

/// 64-bit divisions, with and without sign.
fn divide() -> u64 {
    let words = filled(1024);
    let mut sum = 0_u64;
    for _ in 0..8000 {
        for &word in black_box(&words) {
            let (high, low) = (word | 1 << 40, (word & 0xFFFF) + 3);
            sum = sum.wrapping_add(high / low).wrapping_add((sum as i64 / low as i64) as u64);
        }
    }
    sum
}
