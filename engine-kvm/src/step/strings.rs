//! Repeated MOVS and STOS away from what is watched, executed in software (SDM vol. 2, REP; vol. 1, 7.3.9).
//!
//! Under the single-step flag the processor traps after each element, and a page is 512 of them at least. Here a step goes to
//! the end of a page: what faults or is watched behind it is met with the registers that the processor would have there, and
//! interrupts come between.

use engine::Result;
use iced_x86::{Code, Instruction, OpKind, Register};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::walk::{Paging, Want};
use super::{Next, PAGE, Stepper, TF, Watch};

const DF: u64 = 1 << 10;
const RF: u64 = 1 << 16;
const AC: u64 = 1 << 18;
const CR0_AM: u64 = 1 << 18;

/// A run of elements within a page of each operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    /// Bytes of an element.
    element: u64,
    /// Bytes of all.
    len: u64,
    /// Where the elements come from; none is RAX.
    source: Option<u64>,
}

impl Stepper {
    /// Executes a repeated MOVS or STOS as far as its pages go; none if that is KVM's.
    pub(super) fn string(&mut self, fd: &VcpuFd, i: &Instruction, watch: &Watch) -> Result<Option<Next>> {
        let done = self.string_in_software(i, watch);
        if done.is_some() {
            self.write_general(fd)?;
        }
        Ok(done)
    }

    fn string_in_software(&mut self, i: &Instruction, watch: &Watch) -> Option<Next> {
        let run = self.next_run(i)?;
        if !self.execute(run, watch) {
            return None;
        }
        self.regs.rcx -= run.len / run.element;
        self.regs.rdi = self.regs.rdi.wrapping_add(run.len);
        if run.source.is_some() {
            self.regs.rsi = self.regs.rsi.wrapping_add(run.len);
        }
        let is_over = self.regs.rcx == 0;
        if is_over {
            self.regs.rip = i.next_ip();
            self.regs.rflags &= !RF;
        }
        Some(if is_over { Next::Executed } else { Next::Partly })
    }

    /// The elements up to the end of a page. None of what is seldom: other address sizes, downwards, traps between the
    /// elements, an element across pages.
    fn next_run(&self, i: &Instruction) -> Option<Run> {
        let (element, moves) = match i.code() {
            Code::Movsb_m8_m8 => (1, true),
            Code::Movsw_m16_m16 => (2, true),
            Code::Movsd_m32_m32 => (4, true),
            Code::Movsq_m64_m64 => (8, true),
            Code::Stosb_m8_AL => (1, false),
            Code::Stosw_m16_AX => (2, false),
            Code::Stosd_m32_EAX => (4, false),
            Code::Stosq_m64_RAX => (8, false),
            _ => return None,
        };
        let is_repeated = i.has_rep_prefix() || i.has_repne_prefix();
        let checks_alignment = self.sregs.ss.dpl == 3 && self.sregs.cr0 & CR0_AM != 0;
        let seldom = DF | TF | if checks_alignment { AC } else { 0 };
        if !is_repeated || i.op0_kind() != OpKind::MemoryESRDI || self.regs.rflags & seldom != 0 {
            return None;
        }
        let base = match i.memory_segment() {
            Register::FS => self.sregs.fs.base,
            Register::GS => self.sregs.gs.base,
            _ => 0,
        };
        let source = moves.then(|| base.wrapping_add(self.regs.rsi));
        let room = |linear: u64| (PAGE - linear % PAGE) / element;
        let elements = self.regs.rcx.min(room(self.regs.rdi)).min(source.map_or(u64::MAX, room));
        (elements > 0).then_some(Run { element, len: elements * element, source })
    }

    /// Moves or fills; `false`, and nothing has changed, where memory is missing, a device's, or watched.
    fn execute(&self, run: Run, watch: &Watch) -> bool {
        let paging = Paging::of(&self.memory, &self.regs, &self.sregs);
        let place = |linear, want, watched: bool| {
            let at = paging.translate(linear, want).ok()?;
            let is_ram = self.memory.get_slice(GuestAddress(at), run.len as usize).is_ok();
            let touches = |range: &std::ops::Range<u64>| at < range.end && range.start < at + run.len;
            (is_ram && !(watched && watch.ranges.iter().any(touches))).then_some(at)
        };
        let Some(to) = place(self.regs.rdi, Want::Write, true) else { return false };
        let mut bytes = [0; PAGE as usize];
        let bytes = &mut bytes[..run.len as usize];
        let element = run.element as usize;
        match run.source {
            None => {
                let value = self.regs.rax.to_le_bytes();
                bytes.chunks_exact_mut(element).for_each(|chunk| chunk.copy_from_slice(&value[..element]));
            }
            Some(source) => {
                let Some(from) = place(source, Want::Read, watch.loads) else { return false };
                if self.memory.read_slice(bytes, GuestAddress(from)).is_err() {
                    return false;
                }
                // What the first elements store, later ones load.
                let lag = to.wrapping_sub(from);
                if (1..run.len).contains(&lag) {
                    // An element that begins in one and ends in the next is seldom enough.
                    if lag % run.element != 0 {
                        return false;
                    }
                    let lag = lag as usize;
                    (lag..bytes.len()).for_each(|n| bytes[n] = bytes[n - lag]);
                }
                let _ = paging.translate_for_load(source);
            }
        }
        let _ = paging.translate_for_store(self.regs.rdi);
        self.memory.write_slice(bytes, GuestAddress(to)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::super::walk::tests::{long_mode, memory};
    use super::*;

    const REP_MOVSB: &[u8] = &[0xF3, 0xA4];
    const REP_MOVSQ: &[u8] = &[0xF3, 0x48, 0xA5];
    const REP_STOSB: &[u8] = &[0xF3, 0xAA];
    const REP_STOSD: &[u8] = &[0xF3, 0xAB];

    /// A vCPU whose memory counts upwards from 0x5000, with RSI, RDI and RCX as given.
    fn stepper([rsi, rdi, rcx]: [u64; 3]) -> Stepper {
        let mut stepper = Stepper::new(0, &memory(), false);
        let bytes: Vec<u8> = (0..0x8000_u32).map(|n| (n ^ n >> 8) as u8).collect();
        stepper.memory.write_slice(&bytes, GuestAddress(0x5000)).unwrap();
        stepper.sregs = long_mode();
        (stepper.sregs.cs.l, stepper.regs.rip, stepper.regs.rflags) = (1, 0x1_0000, 2 | RF);
        (stepper.regs.rsi, stepper.regs.rdi, stepper.regs.rcx) = (rsi, rdi, rcx);
        stepper.regs.rax = 0x8877_6655_4433_2211;
        stepper
    }

    fn part(stepper: &mut Stepper, code: &[u8], watch: &Watch) -> Option<Next> {
        let i = Decoder::with_ip(64, code, stepper.regs.rip, DecoderOptions::NONE).decode();
        stepper.string_in_software(&i, watch)
    }

    /// Executes all of it, and says in how many parts.
    fn whole(stepper: &mut Stepper, code: &[u8]) -> usize {
        for parts in 1.. {
            match part(stepper, code, &Watch::default()) {
                Some(Next::Executed) => return parts,
                Some(Next::Partly) => {}
                _ => panic!("not executed at {:#x?}", stepper.regs),
            }
        }
        0
    }

    fn bytes(stepper: &Stepper) -> Vec<u8> {
        let mut bytes = vec![0; 0xB000];
        stepper.memory.read_slice(&mut bytes, GuestAddress(0x5000)).unwrap();
        bytes
    }

    #[test]
    fn elements_move_one_after_the_other() {
        let cases: [(u64, u64, u64, &[u8]); 6] = [
            (0x5010, 0x5011, 100, REP_MOVSB),
            (0x5011, 0x5010, 100, REP_MOVSB),
            (0x5010, 0x5018, 1500, REP_MOVSQ),
            (0x5018, 0x5010, 20, REP_MOVSQ),
            (0x5010, 0x5013, 5000, REP_MOVSB),
            (0x5008, 0x9000, 3000, REP_MOVSQ),
        ];
        for (from, to, count, code) in cases {
            let mut stepper = stepper([from, to, count]);
            let mut want = bytes(&stepper);
            let size = if code == REP_MOVSB { 1 } else { 8 };
            for n in (0..count * size).step_by(size as usize) {
                let at = |base: u64| (base + n - 0x5000) as usize;
                want.copy_within(at(from)..at(from + size), at(to));
            }
            whole(&mut stepper, code);
            assert!(bytes(&stepper) == want, "{from:#x} to {to:#x}");
            let regs = stepper.regs;
            assert_eq!((regs.rcx, regs.rsi, regs.rdi), (0, from + count * size, to + count * size));
            assert_eq!((regs.rip, regs.rflags), (0x1_0000 + code.len() as u64, 2));
        }
    }

    #[test]
    fn a_part_ends_with_its_page() {
        let mut stepper = stepper([0, 0x6FF0, 0x808]);
        assert!(matches!(part(&mut stepper, REP_STOSD, &Watch::default()), Some(Next::Partly)));
        let regs = stepper.regs;
        assert_eq!((regs.rcx, regs.rdi, regs.rip, regs.rflags), (0x804, 0x7000, 0x1_0000, 2 | RF));
        assert_eq!(whole(&mut stepper, REP_STOSD), 3);
        let filled = &bytes(&stepper)[0x1FF0..0x4010];
        assert!(filled.chunks(4).all(|four| four == [0x11, 0x22, 0x33, 0x44]));
    }

    #[test]
    fn marks_are_left_in_the_tables() {
        let mut stepper = stepper([0x5000, 0x7000, 8]);
        whole(&mut stepper, REP_MOVSB);
        let marks =
            |page: u64| stepper.memory.read_obj::<u8>(GuestAddress(0x4000 + page * 8)).unwrap() >> 5 & 3;
        assert_eq!((marks(5), marks(7), marks(6)), (1, 3, 0));
    }

    #[test]
    fn what_is_watched_or_missing_is_left_alone() {
        let watch = |range, loads| Watch { ranges: vec![range], loads, places: false };
        let is_left = |regs, code, watch: &Watch| {
            let mut stepper = stepper(regs);
            let before = (stepper.regs, bytes(&stepper));
            let done = part(&mut stepper, code, watch);
            assert_eq!(done.is_none(), before == (stepper.regs, bytes(&stepper)));
            done.is_none()
        };
        assert!(is_left([0x5000, 0x7000, 8], REP_MOVSB, &watch(0x7007..0x7008, false)));
        assert!(!is_left([0x5000, 0x7000, 8], REP_MOVSB, &watch(0x7008..0x7009, false)));
        assert!(!is_left([0x5000, 0x7000, 8], REP_MOVSB, &watch(0x5000..0x6000, false)));
        assert!(is_left([0x5000, 0x7000, 8], REP_MOVSB, &watch(0x5000..0x6000, true)));
        let nothing = Watch::default();
        assert!(is_left([0, 0x1F_E000, 8], REP_STOSB, &nothing), "read-only");
        assert!(is_left([0, 0x1F_F000, 8], REP_STOSB, &nothing), "missing");
        assert!(is_left([0x1F_D000, 0x7000, 8], REP_MOVSB, &nothing), "SMAP");
        assert!(is_left([0, 0x7FFE, 8], REP_STOSD, &nothing), "an element across pages");
        assert!(is_left([0, 0x7000, 8], &[0xAA], &nothing), "not repeated");
        assert!(is_left([0, 0x7000, 8], &[0x67, 0xF3, 0xAA], &nothing), "32-bit addresses");
        assert!(is_left([0, 0x7000, 0], REP_STOSB, &nothing), "nothing to do");
    }
}
