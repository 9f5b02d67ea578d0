use super::*;
use proptest::prelude::*;

const ENABLED: u64 = 0x1FF;

fn apic(id: VcpuId) -> Lapic {
    let mut apic = Lapic::new(id);
    apic.write_page(at::SVR, 4, ENABLED, 0);
    apic
}

fn x2apic(id: VcpuId) -> Lapic {
    let mut apic = apic(id);
    apic.set_base(apic.base() | base::X2APIC).unwrap();
    apic
}

#[test]
fn modes_change_only_along_the_allowed_edges() {
    const OFF: u64 = 0xFEE0_0000;
    const X: u64 = OFF | base::ENABLE;
    const X2: u64 = X | base::X2APIC;
    for (from, to, allowed) in [
        (X, X2, true),
        (X2, OFF, true),
        (X, OFF, true),
        (X2, X, false),
        (OFF, X2, false),
        (X, OFF | base::X2APIC, false),
        (OFF, X, true),
        (X, 0x12_3000 | base::ENABLE, true),
        (X, X | 1, false),
        (X, X | 1 << 40, false),
    ] {
        let mut apic = Lapic::new(1);
        for step in [X, from] {
            if apic.base() != step && !(step == X && from == OFF) {
                apic.set_base(step).unwrap();
            }
        }
        assert_eq!(apic.set_base(to).is_ok(), allowed, "{from:#x} -> {to:#x}");
    }
}

#[test]
fn disabling_forgets_and_x2apic_shows_ids_its_own_way() {
    let mut apic = apic(3);
    assert_eq!(apic.read_page(at::ID, 4, 0), 3 << 24);
    apic.set_base(apic.base() | base::X2APIC).unwrap();
    assert_eq!(apic.read_msr(0x802, 0), Ok(3));
    assert_eq!(apic.read_msr(0x80D, 0), Ok(8));
    assert_eq!(apic.read_msr(0x80F, 0), Ok(ENABLED), "kept on the way to x2APIC");
    apic.set_base(0xFEE0_0000).unwrap();
    apic.set_base(0xFEE0_0800).unwrap();
    assert_eq!(apic, Lapic::new(3));
}

#[test]
fn priorities_nest() {
    let mut apic = apic(0);
    apic.raise(0x31, false);
    apic.raise(0x52, false);
    assert_eq!(apic.acknowledge(), Some(0x52));
    assert_eq!(apic.processor_priority(), 0x50);
    apic.raise(0x5F, false);
    assert_eq!(apic.pending(), None, "same class");
    apic.raise(0x60, true);
    assert_eq!(apic.acknowledge(), Some(0x60));
    assert_eq!(apic.read_page(at::TMR + 0x30, 4, 0), 1);
    apic.write_page(at::EOI, 4, 0, 0);
    assert_eq!(apic.pending(), None);
    apic.write_page(at::EOI, 4, 0, 0);
    assert_eq!(apic.acknowledge(), Some(0x5F));
    apic.write_page(at::EOI, 4, 0, 0);
    apic.set_cr8(3);
    assert_eq!(apic.pending(), None, "the task's priority");
    assert_eq!(apic.read_page(at::TPR, 4, 0), 0x30);
    apic.set_cr8(2);
    assert_eq!(apic.acknowledge(), Some(0x31));
}

#[test]
fn software_disabled_means_deaf_and_masked() {
    let mut apic = apic(0);
    apic.write_page(at::TIMER, 4, 0x40, 0);
    apic.raise(0x33, false);
    apic.write_page(at::SVR, 4, 0xFF, 0);
    assert_eq!(apic.read_page(at::TIMER, 4, 0), 0x1_0040);
    apic.raise(0x44, false);
    assert_eq!(apic.pending(), Some(0x33), "what was accepted stays");
    apic.write_page(at::TIMER, 4, 0x40, 0);
    assert_eq!(apic.read_page(at::TIMER, 4, 0), 0x1_0040);
}

#[test]
fn errors_are_latched_by_a_write() {
    let mut apic = apic(0);
    apic.write_page(at::ERROR, 4, 0xFE, 0);
    apic.raise(5, false);
    assert_eq!(apic.acknowledge(), Some(0xFE));
    assert_eq!(apic.read_page(at::ESR, 4, 0), 0);
    apic.write_page(at::ICR, 4, 0x4_0003, 0);
    apic.read_page(0x3A0, 4, 0);
    apic.write_page(at::ESR, 4, 0, 0);
    assert_eq!(apic.read_page(at::ESR, 4, 0), 0xE0);
    apic.write_page(at::ESR, 4, 0, 0);
    assert_eq!(apic.read_page(at::ESR, 4, 0), 0);
}

#[test]
fn commands_become_messages() {
    let mut apic = apic(0);
    apic.write_page(at::ICR_HIGH, 4, 0x0200_0000, 0);
    let sent = apic.write_page(at::ICR, 4, 0x4031, 0).unwrap();
    assert_eq!((sent.vector, sent.target), (0x31, Target::Physical(2)));
    let mut apic = x2apic(0);
    let sent = apic.write_msr(0x830, 0x1_0002_0000_0831, 0).unwrap().unwrap();
    assert_eq!(sent.target, Target::Logical(0x1_0002));
    assert_eq!(apic.read_msr(0x830, 0), Ok(0x1_0002_0000_0831));
    assert_eq!(apic.write_msr(0x83F, 0x77, 0), Ok(Some(Message::to_self(0x77))));
}

#[test]
fn x2apic_refuses_what_is_not_there() {
    let mut apic = x2apic(1);
    for index in [0x800, 0x801, 0x80B, 0x80E, 0x831, 0x82F, 0x83A, 0x83F, 0x840, 0x8FF] {
        assert_eq!(apic.read_msr(index, 0), Err(Refused), "read {index:#x}");
    }
    for (index, value) in [
        (0x802, 0),
        (0x803, 0),
        (0x80A, 0),
        (0x80B, 1),
        (0x80D, 0),
        (0x80E, 0),
        (0x810, 0),
        (0x828, 1),
        (0x830, 1 << 12),
        (0x831, 0),
        (0x839, 0),
        (0x808, 0x100),
        (0x832, 1 << 20),
        (0x83E, 4),
        (0x838, 1 << 32),
        (0x840, 0),
    ] {
        assert_eq!(apic.write_msr(index, value, 0), Err(Refused), "write {index:#x}");
    }
    assert_eq!(Lapic::new(0).read_msr(0x802, 0), Err(Refused), "not in this mode");
}

#[test]
fn the_timer_interrupts() {
    let mut apic = apic(0);
    apic.write_page(at::TIMER, 4, 0x40, 0);
    apic.write_page(at::DIVIDE, 4, 0b1011, 0);
    apic.write_page(at::INITIAL, 4, 1000, 500);
    assert_eq!(apic.timer_expiry(), Some(1500));
    assert_eq!(apic.read_page(at::CURRENT, 4, 700), 800);
    apic.settle(1500);
    assert_eq!(apic.acknowledge(), Some(0x40));
    apic.shift_tsc(2000, 0);
    assert_eq!(apic.timer_expiry(), None);
}

#[test]
fn odd_widths_are_harmless() {
    let mut apic = apic(0);
    assert_eq!(apic.read_page(at::VERSION + 2, 1, 0), 5);
    assert_eq!(apic.read_page(at::VERSION, 8, 0), 0x5_0014);
    assert_eq!(apic.read_page(at::VERSION + 3, 4, 0), 0);
    assert_eq!(apic.write_page(at::TPR, 1, 0x20, 0), None);
    assert_eq!(apic.read_page(at::TPR, 4, 0), 0);
}

proptest! {
    #[test]
    fn the_page_says_everything(
        x2 in any::<bool>(),
        writes in prop::collection::vec((0_usize..64, any::<u32>()), 0..60),
        vectors in prop::collection::vec((any::<u8>(), any::<bool>()), 0..20),
        deadline in 0_u64..5000,
    ) {
        let mut apic = if x2 { x2apic(2) } else { apic(2) };
        let mut tsc = 1000;
        for (n, value) in writes {
            tsc += 13;
            if x2 {
                let _ = apic.write_msr(0x800 + n as u32, u64::from(value & writable(n * 16)), tsc);
            } else {
                apic.write_page(n * 16, 4, u64::from(value), tsc);
            }
        }
        for (n, (vector, level)) in vectors.into_iter().enumerate() {
            apic.raise(vector, level);
            if n % 3 == 0 {
                apic.acknowledge();
            }
        }
        apic.set_deadline(deadline, tsc);
        let page = apic.save(tsc);
        let deadline = apic.deadline(tsc);
        let mut again = Lapic::load(2, &page, apic.base(), deadline, tsc).unwrap();
        prop_assert_eq!(again.save(tsc), page);
        prop_assert_eq!(&again, &apic);
    }
}
