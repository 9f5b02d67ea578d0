//! A made-up kernel in each of the layouts, and what damage does to it. Real ones are in nvsim/tests/symbols.rs.

use insta::assert_snapshot;
use object::elf;
use proptest::prelude::*;

use super::*;

const TEXT: u64 = 0xffff_ffff_8100_0000;
const RODATA: u64 = 0xffff_ffff_8200_0000;
const ORC_IP: u64 = 0xffff_ffff_8300_0000;
const ORC: u64 = 0xffff_ffff_8300_1000;

/// Where a kernel's build puts the tables.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Order {
    /// Linux 6.1: offsets first.
    Old,
    /// Linux 6.2: sequence numbers before the tokens.
    Sequenced,
    /// Linux 6.12: offsets last.
    New,
}

/// Symbols of a made-up kernel: functions of 16 bytes, a per-CPU variable, and one name of 300 characters.
fn symbols() -> Vec<(u64, String)> {
    let long = "very_".repeat(60);
    let many = (0..700).map(|n| (TEXT + 16 * n, format!("function_{n}")));
    let mut all = vec![(0x1000, "per_cpu_variable".to_owned())];
    all.extend(many);
    all.push((TEXT + 16 * 700, long));
    all
}

/// The tables, as scripts/kallsyms.c writes them, with single characters for tokens.
fn tables(order: Order) -> Vec<u8> {
    let symbols = symbols();
    let pad = |bytes: &mut Vec<u8>| bytes.resize(bytes.len().next_multiple_of(8), 0);
    let mut offsets = Vec::new();
    for (address, _) in &symbols {
        let offset = if *address < TEXT { *address as i32 } else { -1 - (address - TEXT) as i32 };
        offsets.extend(offset.to_le_bytes());
    }
    pad(&mut offsets);
    offsets.extend(TEXT.to_le_bytes());

    let (mut names, mut markers) = (Vec::new(), Vec::new());
    for (n, (_, name)) in symbols.iter().enumerate() {
        if n % 256 == 0 {
            markers.extend((names.len() as u32).to_le_bytes());
        }
        let len = name.len() + 1;
        match len {
            0..=127 => names.push(len as u8),
            _ => names.extend([len as u8 | 0x80, (len >> 7) as u8]),
        }
        names.push(b't');
        names.extend(name.bytes());
    }
    let (mut strings, mut index) = (Vec::new(), Vec::new());
    for token in 0..=255u8 {
        index.extend((strings.len() as u16).to_le_bytes());
        // Characters that no name has stand for longer strings.
        let string = if token.is_ascii_graphic() { vec![token] } else { b"_token_".to_vec() };
        strings.extend(string);
        strings.push(0);
    }
    let mut out = vec![0xee; 64];
    if order == Order::Old || order == Order::Sequenced {
        out.extend(&offsets);
    }
    out.extend((symbols.len() as u64).to_le_bytes());
    for table in [names, markers] {
        out.extend(table);
        pad(&mut out);
    }
    if order == Order::Sequenced {
        for n in 0..symbols.len() as u32 {
            out.extend(&n.to_be_bytes()[1..]);
        }
        pad(&mut out);
    }
    out.extend(strings);
    pad(&mut out);
    out.extend(index);
    if order == Order::New {
        out.extend(&offsets);
    }
    out.extend([0xee; 64]);
    out
}

/// Three functions: the first keeps 8 bytes on the stack, the second has a frame, the third is the outermost.
fn orc() -> (Vec<u8>, Vec<u8>) {
    let rows = [(0u64, 16i16, 0i16, 0x05 | 2 << 8), (16, 16, -16, 0x14 | 2 << 8), (32, 0, 0, 1 << 8)];
    let (mut ips, mut entries) = (Vec::new(), Vec::new());
    for (n, (at, sp, bp, bits)) in rows.into_iter().enumerate() {
        let place = ORC_IP + 4 * n as u64;
        ips.extend(((TEXT + at).wrapping_sub(place) as u32).to_le_bytes());
        entries.extend(sp.to_le_bytes());
        entries.extend(bp.to_le_bytes());
        entries.extend((bits as u16).to_le_bytes());
    }
    (ips, entries)
}

/// An ELF file with one segment for the tables.
fn vmlinux(order: Order) -> Vec<u8> {
    let names = b"\0.text\0.rodata\0.orc_unwind_ip\0.orc_unwind\0.orc_header\0.shstrtab\0";
    let name =
        |wanted: &str| names.windows(wanted.len() + 1).position(|w| w == [wanted.as_bytes(), b"\0"].concat());
    let (ips, entries) = orc();
    let rodata = tables(order);
    let parts: [(&str, u32, u64, u64, Vec<u8>); 6] = [
        (".text", elf::SHT_PROGBITS, elf::SHF_EXECINSTR.into(), TEXT, vec![0x90; 16 * 701]),
        (".rodata", elf::SHT_PROGBITS, 0, RODATA, rodata),
        (".orc_unwind_ip", elf::SHT_PROGBITS, 0, ORC_IP, ips),
        (".orc_unwind", elf::SHT_PROGBITS, 0, ORC, entries),
        (".orc_header", elf::SHT_PROGBITS, 0, ORC + 0x1000, vec![0; 20]),
        (".shstrtab", elf::SHT_STRTAB, 0, 0, names.to_vec()),
    ];
    let mut out = vec![0u8; 64 + 56];
    let mut sections = vec![0u8; 64];
    for (own, kind, flags, address, data) in &parts {
        out.resize(out.len().next_multiple_of(16), 0);
        let mut section = Vec::new();
        section.extend((name(own).unwrap() as u32).to_le_bytes());
        section.extend(kind.to_le_bytes());
        for word in [*flags, *address, out.len() as u64, data.len() as u64, 0, 0, 0] {
            section.extend(word.to_le_bytes());
        }
        section.truncate(64);
        if *own == ".rodata" {
            let header = [RODATA, RODATA, data.len() as u64, data.len() as u64, 8];
            out[64..68].copy_from_slice(&elf::PT_LOAD.to_le_bytes());
            let offset = (out.len() as u64).to_le_bytes();
            out[72..80].copy_from_slice(&offset);
            for (n, word) in header.into_iter().enumerate() {
                out[80 + 8 * n..88 + 8 * n].copy_from_slice(&word.to_le_bytes());
            }
        }
        out.extend(data);
        sections.extend(section);
    }
    let table = out.len() as u64;
    out.extend(sections);
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &elf::ET_EXEC.to_le_bytes());
    put(18, &elf::EM_X86_64.to_le_bytes());
    put(20, &1u32.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(40, &table.to_le_bytes());
    for (at, number) in [(52, 64u16), (54, 56), (56, 1), (58, 64), (60, 7), (62, 6)] {
        put(at, &number.to_le_bytes());
    }
    out
}

#[test]
fn names_are_found_in_each_order_of_the_tables() {
    for order in [Order::Old, Order::Sequenced, Order::New] {
        let kernel = Kernel::read(&vmlinux(order)).unwrap_or_else(|e| panic!("{order:?}: {e}"));
        let own: Vec<(u64, String)> = kernel.symbols().iter().map(|(a, name)| (a, name.to_owned())).collect();
        assert_eq!(own, symbols(), "{order:?}");
        assert_eq!(kernel.lookup(TEXT + 16 * 300 + 3), Some(("function_300", 3)));
        // A per-CPU variable's offset is no address, and user space is not the kernel.
        assert_eq!(kernel.lookup(0x1001), None);
    }
}

#[test]
fn what_is_missing_is_said() {
    let mut no_names = vmlinux(Order::New);
    let at = no_names.windows(8).position(|w| w == 702u64.to_le_bytes()).unwrap();
    no_names[at] ^= 64;
    let says = |data: &[u8]| Kernel::read(data).unwrap_err().to_string();
    assert_snapshot!(
        [says(&no_names), says(b"MZ"), says(&vmlinux(Order::New)[..200])].join("\n"),
        @r"
    it holds no kallsyms tables (names); build it with CONFIG_KALLSYMS=y and CONFIG_KALLSYMS_BASE_RELATIVE=y
    not a whole ELF kernel for x86-64: Invalid ELF header size or alignment
    not a whole ELF kernel for x86-64: it has no code
    "
    );
}

/// A stack at an address.
fn stack(words: &'static [u64]) -> impl FnMut(u64, &mut [u8]) -> bool {
    move |address, bytes| {
        let n = address.wrapping_sub(0xffff_c900_0000_0000) / 8;
        let Some(word) = usize::try_from(n).ok().and_then(|n| words.get(n)) else { return false };
        bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
        bytes.len() == 8
    }
}

const STACK: u64 = 0xffff_c900_0000_0000;

#[test]
fn a_chain_goes_through_stack_and_frame_pointers_to_the_outermost_function() {
    let code = Code::new(Kernel::read(&vmlinux(Order::New)).unwrap());
    // function_0 keeps a word; function_1 has a frame at STACK + 24; function_2 is the outermost.
    let mut memory = stack(&[1, TEXT + 20, 2, 0, TEXT + 35]);
    let registers = Registers { ip: TEXT + 4, sp: STACK, bp: STACK + 24, ..Registers::default() };
    let chain = code.unwind(registers, &mut memory);
    let names: Vec<String> =
        chain.frames.iter().map(|f| code.place(f.ip).map_or_else(String::new, |p| p.to_string())).collect();
    assert_eq!(names, ["function_0+0x4", "function_1+0x4", "function_2+0x3"]);
    assert!(chain.whole && chain.frames.iter().all(|frame| !frame.guess), "{chain:?}");
    // RSP and RBP, and nothing of what the functions use for themselves.
    assert_eq!(chain.registers, [4, 5]);
}

#[test]
fn a_chain_ends_where_the_stack_does_or_goes_in_circles() {
    let code = Code::new(Kernel::read(&vmlinux(Order::New)).unwrap());
    let registers = |ip| Registers { ip, sp: STACK, bp: STACK, ..Registers::default() };
    let torn = code.unwind(registers(TEXT + 4), &mut stack(&[1]));
    assert_eq!((torn.frames.len(), torn.whole), (1, false));
    // A frame that is its own caller.
    let circle = code.unwind(registers(TEXT + 20), &mut stack(&[STACK, TEXT + 20, STACK, TEXT + 20]));
    assert!(circle.frames.len() <= DEPTH && !circle.whole);
    let user = code.unwind(registers(0x40_1000), &mut stack(&[]));
    assert_eq!(user.frames, [Frame { ip: 0x40_1000, guess: false }]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_damaged_kernel_never_panics(
        order in prop_oneof![Just(Order::Old), Just(Order::Sequenced), Just(Order::New)],
        hits in prop::collection::vec((0usize..40_000, any::<u8>()), 1..20),
        cut in 0usize..60_000,
    ) {
        let mut data = vmlinux(order);
        for (at, byte) in hits {
            if let Some(place) = data.get_mut(at) { *place = byte; }
        }
        data.truncate(cut.max(64));
        if let Ok(kernel) = Kernel::read(&data) {
            let _ = (kernel.lookup(TEXT + 5), kernel.symbols().address("function_1"));
        }
    }

    #[test]
    fn a_hostile_stack_never_panics_and_a_chain_has_an_end(
        words in prop::collection::vec(prop_oneof![
            any::<u64>(), (0u64..0x60).prop_map(|n| TEXT + n), (0u64..512).prop_map(|n| STACK + n),
        ], 64),
        ip in 0u64..0x40, sp in any::<u8>(), bp in any::<u64>(),
    ) {
        let code = Code::new(Kernel::read(&vmlinux(Order::New)).unwrap());
        let mut memory = |address: u64, bytes: &mut [u8]| {
            let word = words[(address / 8) as usize % words.len()];
            bytes.iter_mut().zip(word.to_le_bytes().into_iter().cycle()).for_each(|(to, from)| *to = from);
            true
        };
        let registers = Registers { ip: TEXT + ip, sp: STACK + u64::from(sp), bp, ..Registers::default() };
        prop_assert!(code.unwind(registers, &mut memory).frames.len() <= DEPTH);
    }
}
