//! Model-specific registers that are part of the neutral state (SDM vol. 4).

/// Defines [`Msrs`] with one field a register and the maps between index and field.
macro_rules! msrs {
    ($($(#[$doc:meta])* $field:ident = $konst:ident : $index:expr, reset $reset:expr;)*) => {
        $($(#[$doc])* pub const $konst: u32 = $index;)*

        /// The values; `EFER`, `FS_BASE`, `GS_BASE` and `APIC_BASE` live with the system registers.
        #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub struct Msrs {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl Default for Msrs {
            /// Values after power-up.
            fn default() -> Self {
                Self { $($field: $reset,)* }
            }
        }

        impl Msrs {
            /// Every register with its index, in an order in which they may be written back
            /// (the TSC before its deadline).
            pub fn iter(&self) -> impl Iterator<Item = (u32, u64)> {
                [$(($konst, self.$field),)*].into_iter()
            }

            /// The register behind an index.
            pub fn get_mut(&mut self, index: u32) -> Option<&mut u64> {
                match index {
                    $($konst => Some(&mut self.$field),)*
                    _ => None,
                }
            }
        }
    };
}

/// EFER; its value is in [`crate::state::SystemRegisters::efer`].
pub const EFER: u32 = 0xC000_0080;
/// FS segment base; its value is in the segment.
pub const FS_BASE: u32 = 0xC000_0100;
/// GS segment base; its value is in the segment.
pub const GS_BASE: u32 = 0xC000_0101;
/// Local APIC base, enable and x2APIC bits; its value is in [`crate::state::SystemRegisters::apic_base`].
pub const APIC_BASE: u32 = 0x1B;

msrs! {
    /// Time-stamp counter.
    tsc = TSC: 0x10, reset 0;
    /// Absolute TSC deadline of the local APIC timer; 0 is disarmed.
    tsc_deadline = TSC_DEADLINE: 0x6E0, reset 0;
    /// Value of RDTSCP's ECX.
    tsc_aux = TSC_AUX: 0xC000_0103, reset 0;
    /// SYSCALL/SYSRET selectors.
    star = STAR: 0xC000_0081, reset 0;
    /// SYSCALL entry, 64-bit.
    lstar = LSTAR: 0xC000_0082, reset 0;
    /// SYSCALL entry, compatibility mode.
    cstar = CSTAR: 0xC000_0083, reset 0;
    /// RFLAGS bits that SYSCALL clears.
    fmask = FMASK: 0xC000_0084, reset 0;
    /// What SWAPGS exchanges with the GS base.
    kernel_gs_base = KERNEL_GS_BASE: 0xC000_0102, reset 0;
    /// SYSENTER code selector.
    sysenter_cs = SYSENTER_CS: 0x174, reset 0;
    /// SYSENTER stack pointer.
    sysenter_esp = SYSENTER_ESP: 0x175, reset 0;
    /// SYSENTER entry.
    sysenter_eip = SYSENTER_EIP: 0x176, reset 0;
    /// Page-attribute table.
    pat = PAT: 0x277, reset 0x0007_0406_0007_0406;
    /// Miscellaneous enables; bit 0: fast strings.
    misc_enable = MISC_ENABLE: 0x1A0, reset 1;
    /// Variable-range MTRR 0: base and type.
    mtrr_phys_base0 = MTRR_PHYS_BASE0: 0x200, reset 0;
    /// Variable-range MTRR 0: mask and validity.
    mtrr_phys_mask0 = MTRR_PHYS_MASK0: 0x201, reset 0;
    /// Variable-range MTRR 1: base and type.
    mtrr_phys_base1 = MTRR_PHYS_BASE1: 0x202, reset 0;
    /// Variable-range MTRR 1: mask and validity.
    mtrr_phys_mask1 = MTRR_PHYS_MASK1: 0x203, reset 0;
    /// Variable-range MTRR 2: base and type.
    mtrr_phys_base2 = MTRR_PHYS_BASE2: 0x204, reset 0;
    /// Variable-range MTRR 2: mask and validity.
    mtrr_phys_mask2 = MTRR_PHYS_MASK2: 0x205, reset 0;
    /// Variable-range MTRR 3: base and type.
    mtrr_phys_base3 = MTRR_PHYS_BASE3: 0x206, reset 0;
    /// Variable-range MTRR 3: mask and validity.
    mtrr_phys_mask3 = MTRR_PHYS_MASK3: 0x207, reset 0;
    /// Variable-range MTRR 4: base and type.
    mtrr_phys_base4 = MTRR_PHYS_BASE4: 0x208, reset 0;
    /// Variable-range MTRR 4: mask and validity.
    mtrr_phys_mask4 = MTRR_PHYS_MASK4: 0x209, reset 0;
    /// Variable-range MTRR 5: base and type.
    mtrr_phys_base5 = MTRR_PHYS_BASE5: 0x20A, reset 0;
    /// Variable-range MTRR 5: mask and validity.
    mtrr_phys_mask5 = MTRR_PHYS_MASK5: 0x20B, reset 0;
    /// Variable-range MTRR 6: base and type.
    mtrr_phys_base6 = MTRR_PHYS_BASE6: 0x20C, reset 0;
    /// Variable-range MTRR 6: mask and validity.
    mtrr_phys_mask6 = MTRR_PHYS_MASK6: 0x20D, reset 0;
    /// Variable-range MTRR 7: base and type.
    mtrr_phys_base7 = MTRR_PHYS_BASE7: 0x20E, reset 0;
    /// Variable-range MTRR 7: mask and validity.
    mtrr_phys_mask7 = MTRR_PHYS_MASK7: 0x20F, reset 0;
    /// Fixed-range MTRR, eight types of one range each.
    mtrr_fix_64k_00000 = MTRR_FIX_64K_00000: 0x250, reset 0;
    /// Fixed-range MTRR, eight types of one range each.
    mtrr_fix_16k_80000 = MTRR_FIX_16K_80000: 0x258, reset 0;
    /// Fixed-range MTRR, eight types of one range each.
    mtrr_fix_16k_a0000 = MTRR_FIX_16K_A0000: 0x259, reset 0;
    /// Fixed-range MTRR, eight types of one range each.
    mtrr_fix_4k_c0000 = MTRR_FIX_4K_C0000: 0x268, reset 0;
    /// Fixed-range MTRR, eight types of one range each.
    mtrr_fix_4k_c8000 = MTRR_FIX_4K_C8000: 0x269, reset 0;
    /// Fixed-range MTRR, eight types of one range each.
    mtrr_fix_4k_d0000 = MTRR_FIX_4K_D0000: 0x26A, reset 0;
    /// Fixed-range MTRR, eight types of one range each.
    mtrr_fix_4k_d8000 = MTRR_FIX_4K_D8000: 0x26B, reset 0;
    /// Fixed-range MTRR, eight types of one range each.
    mtrr_fix_4k_e0000 = MTRR_FIX_4K_E0000: 0x26C, reset 0;
    /// Fixed-range MTRR, eight types of one range each.
    mtrr_fix_4k_e8000 = MTRR_FIX_4K_E8000: 0x26D, reset 0;
    /// Fixed-range MTRR, eight types of one range each.
    mtrr_fix_4k_f0000 = MTRR_FIX_4K_F0000: 0x26E, reset 0;
    /// Fixed-range MTRR, eight types of one range each.
    mtrr_fix_4k_f8000 = MTRR_FIX_4K_F8000: 0x26F, reset 0;
    /// MTRR default type; enabled, write-back.
    mtrr_def_type = MTRR_DEF_TYPE: 0x2FF, reset 0x806;
}
