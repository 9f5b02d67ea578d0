//! The CPU that every guest sees, on every engine: x86-64-v2, or v3 if asked for, with CLFLUSHOPT, CLWB, TSC-deadline and an
//! invariant TSC of told frequency (SDM vol. 2, CPUID).
//!
//! It calls itself an Intel family 6 model 0x1C: Linux lists that in-order model as free of the speculation bugs, so no
//! page-table isolation, retpolines or return thunks disturb what is measured, without any MSR that a host must lend.
//! The hypervisor bit is clear, so time comes from leaf 0x15 on both engines and not from a paravirtual clock.

use serde::{Deserialize, Serialize};

use crate::VcpuId;

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidEntry {
    /// EAX at the question.
    pub leaf: u32,
    /// ECX at the question, where the leaf has sub-leaves.
    pub subleaf: Option<u32>,
    /// EAX, EBX, ECX, EDX of the answer.
    pub registers: [u32; 4],
}

/// All answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidTable {
    /// Sorted by leaf, sub-leaf.
    pub entries: Vec<CpuidEntry>,
}

/// Which instructions a guest is shown: levels of the x86-64 psABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum CpuModel {
    /// SSE to SSE4.2.
    #[default]
    V2,
    /// AVX, AVX2, FMA, F16C, BMI1, BMI2, LZCNT, MOVBE and XSAVE, too.
    V3,
}

impl std::fmt::Display for CpuModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V2 => "v2",
            Self::V3 => "v3",
        })
    }
}

/// A feature that [`CpuModel::V3`] has and [`CpuModel::V2`] has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// As the SDM and Linux call it.
    pub name: &'static str,
    /// Leaf and sub-leaf,
    pub leaf: (u32, u32),
    /// number of the register: EAX, EBX, ECX, EDX,
    pub register: usize,
    /// and bit.
    pub bit: u32,
}

impl Feature {
    const fn new(name: &'static str, leaf: u32, subleaf: u32, register: usize, bit: u32) -> Self {
        Self { name, leaf: (leaf, subleaf), register, bit }
    }
}

/// What [`CpuModel::V3`] adds. AVX stands for its state component in XCR0, too.
pub const V3: [Feature; 11] = [
    Feature::new("FMA", 1, 0, 2, 12),
    Feature::new("MOVBE", 1, 0, 2, 22),
    Feature::new("XSAVE", 1, 0, 2, 26),
    Feature::new("AVX", 1, 0, 2, 28),
    Feature::new("F16C", 1, 0, 2, 29),
    Feature::new("BMI1", 7, 0, 1, 3),
    Feature::new("AVX2", 7, 0, 1, 5),
    Feature::new("BMI2", 7, 0, 1, 8),
    Feature::new("XSAVEOPT", 0xD, 1, 0, 0),
    Feature::new("LZCNT", 0x8000_0001, 0, 2, 5),
    Feature::new("AVX state", 0xD, 0, 0, 2),
];

/// The XSAVE area (SDM vol. 1, 13.4).
pub mod xsave {
    /// XCR0 and XSTATE_BV: x87 state. Always set in XCR0.
    pub const X87: u64 = 1;
    /// SSE state.
    pub const SSE: u64 = 2;
    /// The upper halves of YMM registers.
    pub const AVX: u64 = 4;
    /// All that there are.
    pub const ALL: u64 = X87 | SSE | AVX;
    /// Offset of the header: XSTATE_BV, XCOMP_BV, zeros.
    pub const HEADER: usize = 512;
    /// Offset of the upper halves.
    pub const UPPER: usize = 576;
    /// Bytes of all.
    pub const SIZE: usize = UPPER + 256;

    /// Bytes of an area with the components that XCR0 has on.
    #[must_use]
    pub const fn size(xcr0: u64) -> usize {
        if xcr0 & AVX != 0 { SIZE } else { UPPER }
    }

    /// XCR0 may have this value.
    #[must_use]
    pub const fn valid(xcr0: u64) -> bool {
        xcr0 & !ALL == 0 && xcr0 & X87 != 0 && (xcr0 & AVX == 0 || xcr0 & SSE != 0)
    }
}

/// Feature bits by (leaf register), for engines that refuse what is not shown.
pub mod feature {
    /// Leaf 1 ECX: SSE3, SSSE3, CX16, SSE4.1, SSE4.2, POPCNT, TSC deadline, RDRAND.
    pub const LEAF1_ECX: u32 = 1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23 | 1 << 24 | 1 << 30;
    /// Leaf 1 ECX, x2APIC.
    pub const X2APIC: u32 = 1 << 21;
    /// Leaf 1 EDX: FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2.
    pub const LEAF1_EDX: u32 = 0x078B_FBFD;
    /// Leaf 7 EBX: FSGSBASE, ERMS, CLFLUSHOPT, CLWB.
    pub const LEAF7_EBX: u32 = 1 | 1 << 9 | 1 << 23 | 1 << 24;
    /// Leaf 7 EDX: FSRM.
    pub const LEAF7_EDX: u32 = 1 << 4;
    /// Leaf 0x8000_0001 ECX: LAHF.
    pub const EXT1_ECX: u32 = 1;
    /// Leaf 0x8000_0001 EDX: SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
    pub const EXT1_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29;
}

/// Physical address bits of the model.
pub const PHYSICAL_ADDRESS_BITS: u32 = 40;
/// Linear address bits of the model.
pub const LINEAR_ADDRESS_BITS: u32 = 48;

impl CpuidTable {
    /// The table of a model at a TSC frequency.
    #[must_use]
    pub fn new(model: CpuModel, vcpus: u8, tsc_khz: u32) -> Self {
        match model {
            CpuModel::V2 => Self::x86_64_v2(vcpus, tsc_khz),
            CpuModel::V3 => Self::x86_64_v3(vcpus, tsc_khz),
        }
    }

    /// The larger model. What depends on CR4 and XCR0 is told as it is after power-up.
    #[must_use]
    pub fn x86_64_v3(vcpus: u8, tsc_khz: u32) -> Self {
        let mut table = Self::x86_64_v2(vcpus, tsc_khz);
        let mut sub =
            |n, registers| table.entries.push(CpuidEntry { leaf: 0xD, subleaf: Some(n), registers });
        sub(0, [xsave::X87 as u32 | xsave::SSE as u32, xsave::UPPER as u32, xsave::SIZE as u32, 0]);
        sub(1, [0; 4]);
        sub(2, [(xsave::SIZE - xsave::UPPER) as u32, xsave::UPPER as u32, 0, 0]);
        for Feature { leaf, register, bit, .. } in V3 {
            for entry in table.entries.iter_mut().filter(|e| (e.leaf, e.subleaf.unwrap_or(0)) == leaf) {
                entry.registers[register] |= 1 << bit;
            }
        }
        for entry in table.entries.iter_mut().filter(|e| e.leaf == 0x8000_0002) {
            entry.registers = text16(b"nvsim x86-64-v3 ");
        }
        table.entries.sort_by_key(|e| (e.leaf, e.subleaf));
        table
    }

    /// The model that this is a table of: the larger one only if it has all of it.
    #[must_use]
    pub fn model(&self) -> CpuModel {
        if self.lacks().is_empty() { CpuModel::V3 } else { CpuModel::V2 }
    }

    /// What this table, a host's for example, does not have of [`CpuModel::V3`].
    #[must_use]
    pub fn lacks(&self) -> Vec<&'static str> {
        let has = |f: &Feature| self.lookup(f.leaf.0, f.leaf.1)[f.register] >> f.bit & 1 != 0;
        V3.iter().filter(|f| !has(f)).map(|f| f.name).collect()
    }

    /// The default model at a TSC frequency.
    #[must_use]
    pub fn x86_64_v2(vcpus: u8, tsc_khz: u32) -> Self {
        let threads = u32::from(vcpus);
        let shift = threads.next_power_of_two().trailing_zeros();
        let multi = u32::from(vcpus > 1) << 28;
        let mhz = tsc_khz / 1000;
        let mut entries = Vec::new();
        let mut leaf = |leaf, registers| entries.push(CpuidEntry { leaf, subleaf: None, registers });
        leaf(0, text12(0x16, b"GenuineIntel"));
        leaf(
            1,
            [
                0x0001_06CA,
                threads << 16 | 8 << 8,
                feature::LEAF1_ECX | feature::X2APIC,
                feature::LEAF1_EDX | multi,
            ],
        );
        leaf(6, [1 << 2, 0, 0, 0]);
        leaf(0x15, [1, 1, tsc_khz.saturating_mul(1000), 0]);
        leaf(0x16, [mhz, mhz, 100, 0]);
        leaf(0x8000_0000, [0x8000_0008, 0, 0, 0]);
        leaf(0x8000_0001, [0, 0, feature::EXT1_ECX, feature::EXT1_EDX]);
        let brand = *b"nvsim x86-64-v2 persistent-memory laboratory\0\0\0\0";
        for (n, part) in brand.chunks_exact(16).enumerate() {
            leaf(0x8000_0002 + n as u32, text16(part));
        }
        leaf(0x8000_0006, [0, 0, 0x0200_8040, 0]);
        leaf(0x8000_0007, [0, 0, 0, 1 << 8]);
        leaf(0x8000_0008, [PHYSICAL_ADDRESS_BITS | LINEAR_ADDRESS_BITS << 8, 0, 0, 0]);
        let mut sub = |leaf, n, registers| entries.push(CpuidEntry { leaf, subleaf: Some(n), registers });
        let cores = threads.saturating_sub(1) << 26;
        sub(4, 0, [cores | 0x121, 0x01C0_003F, 63, 0]);
        sub(4, 1, [cores | 0x122, 0x01C0_003F, 63, 0]);
        sub(4, 2, [cores | 0x143, 0x03C0_003F, 1023, 0]);
        sub(4, 3, [0; 4]);
        sub(7, 0, [0, feature::LEAF7_EBX, 0, feature::LEAF7_EDX]);
        sub(0xB, 0, [0, 1, 0x100, 0]);
        sub(0xB, 1, [shift, threads, 0x201, 0]);
        sub(0xB, 2, [0, 0, 2, 0]);
        entries.sort_by_key(|e| (e.leaf, e.subleaf));
        Self { entries }
    }

    /// The table as one vCPU sees it: its APIC id in leaves 1 and 0xB.
    #[must_use]
    pub fn for_vcpu(&self, vcpu: VcpuId) -> Self {
        let mut table = self.clone();
        for entry in &mut table.entries {
            match entry.leaf {
                1 => entry.registers[1] |= u32::from(vcpu) << 24,
                0xB => entry.registers[3] = u32::from(vcpu),
                _ => {}
            }
        }
        table
    }

    /// What CPUID answers, as Intel's do: a leaf beyond its range gives the highest basic leaf, one that is merely not
    /// there zeros, and leaf 0xB tells the APIC id at any level.
    #[must_use]
    pub fn lookup(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let find = |leaf| {
            self.entries
                .iter()
                .find(|e| e.leaf == leaf && e.subleaf.is_none_or(|n| n == subleaf))
                .map(|e| e.registers)
        };
        let highest = |class| find(class).map_or(0, |registers| registers[0]);
        let limit = match leaf {
            0x4000_0000..0x5000_0000 | 0xC000_0000.. => 0,
            0x8000_0000.. => highest(0x8000_0000),
            _ => highest(0),
        };
        match find(leaf) {
            Some(registers) => registers,
            None if leaf > limit => find(highest(0)).unwrap_or([0; 4]),
            None if leaf == 0xB => {
                let levels = self.entries.iter().find(|e| e.leaf == 0xB);
                [0, 0, subleaf & 0xFF, levels.map_or(0, |e| e.registers[3])]
            }
            None => [0; 4],
        }
    }
}

fn le32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Text in EAX, EBX, ECX, EDX.
fn text16(text: &[u8]) -> [u32; 4] {
    std::array::from_fn(|i| le32(&text[i * 4..]))
}

/// Leaf 0's order of the vendor: EBX, EDX, ECX.
fn text12(eax: u32, text: &[u8; 12]) -> [u32; 4] {
    [eax, le32(&text[0..]), le32(&text[8..]), le32(&text[4..])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaf_zero_spells_the_vendor() {
        let [_, ebx, ecx, edx] = CpuidTable::x86_64_v2(1, 1_000_000).lookup(0, 0);
        let text: Vec<u8> = [ebx, edx, ecx].iter().flat_map(|r| r.to_le_bytes()).collect();
        assert_eq!(text, b"GenuineIntel");
    }

    #[test]
    fn frequency_is_told_in_hertz() {
        let [den, num, crystal, _] = CpuidTable::x86_64_v2(1, 2_500_000).lookup(0x15, 0);
        assert_eq!(u64::from(crystal) * u64::from(num) / u64::from(den), 2_500_000_000);
    }

    #[test]
    fn every_vcpu_has_its_apic_id() {
        let table = CpuidTable::x86_64_v2(4, 1_000_000).for_vcpu(3);
        assert_eq!(table.lookup(1, 0)[1] >> 24, 3);
        assert_eq!(table.lookup(0xB, 1), [2, 4, 0x201, 3]);
    }

    #[test]
    fn what_is_not_there_is_answered_as_by_intel() {
        let table = CpuidTable::x86_64_v2(2, 1_000_000).for_vcpu(1);
        for leaf in [0x17, 0x2000_0000, 0x4000_0000, 0x8000_0009, 0xC000_0000] {
            assert_eq!(table.lookup(leaf, 0), table.lookup(0x16, 0), "{leaf:#x}");
        }
        for leaf in [2, 0xD, 0x8000_0005] {
            assert_eq!(table.lookup(leaf, 0), [0; 4], "{leaf:#x}");
        }
        assert_eq!(table.lookup(0xB, 9), [0, 0, 9, 1]);
    }

    #[test]
    fn the_larger_model_is_the_smaller_one_and_its_features() {
        let [v2, v3] = [CpuModel::V2, CpuModel::V3].map(|model| CpuidTable::new(model, 2, 1_000_000));
        assert_eq!((v2.model(), v3.model()), (CpuModel::V2, CpuModel::V3));
        assert_eq!(v2.lacks().len(), V3.len());
        for entry in v2.entries.iter().filter(|entry| entry.leaf != 0x8000_0002) {
            let mut more = v3.lookup(entry.leaf, entry.subleaf.unwrap_or(0));
            for f in V3.iter().filter(|f| f.leaf.0 == entry.leaf) {
                more[f.register] &= !(1 << f.bit);
            }
            assert_eq!(more, entry.registers, "leaf {:#x}", entry.leaf);
        }
        assert_eq!(v3.lookup(0xD, 0), [7, 576, 832, 0]);
        assert_eq!(v3.lookup(0xD, 1), [1, 0, 0, 0]);
        assert_eq!(v3.lookup(0xD, 2), [256, 576, 0, 0]);
        assert_eq!(v3.lookup(0x8000_0002, 0).map(u32::to_le_bytes).concat(), b"nvsim x86-64-v3 ");
    }

    #[test]
    fn leaf_one_has_no_reserved_bit() {
        assert_eq!(feature::LEAF1_EDX & (1 << 10 | 1 << 20 | 1 << 1), 0);
        for bit in [0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26] {
            assert_ne!(feature::LEAF1_EDX & 1 << bit, 0, "bit {bit}");
        }
    }
}
