//! Segments, descriptor tables and control registers (SDM vol. 3, ch. 2 and 3).

/// A segment register with its hidden part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Linear base.
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// Attributes as in bits 8..24 of a descriptor's second dword: type 0..4, S 4, DPL 5..7, P 7, AVL 12, L 13, D/B 14,
    /// G 15. Bit 16 ([`Segment::UNUSABLE`]): the null selector was loaded.
    pub attributes: u32,
}

impl Segment {
    /// Attribute bit: present.
    pub const PRESENT: u32 = 1 << 7;
    /// Attribute bit: code or data (clear: system).
    pub const CODE_OR_DATA: u32 = 1 << 4;
    /// Attribute bit: 64-bit code.
    pub const LONG: u32 = 1 << 13;
    /// Attribute bit: 32-bit default size.
    pub const BIG: u32 = 1 << 14;
    /// Attribute bit: limit counted in pages.
    pub const GRANULARITY: u32 = 1 << 15;
    /// Attribute bit: unusable.
    pub const UNUSABLE: u32 = 1 << 16;

    /// A real-mode segment as after reset.
    #[must_use]
    pub const fn real(selector: u16, base: u64, kind: u32) -> Self {
        Self { selector, base, limit: 0xFFFF, attributes: kind | Self::PRESENT }
    }

    /// Type field, 0 to 15.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        (self.attributes & 15) as u8
    }

    /// Descriptor privilege level.
    #[must_use]
    pub const fn dpl(&self) -> u8 {
        (self.attributes >> 5 & 3) as u8
    }
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DescriptorTable {
    /// Linear base.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// System registers.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SystemRegisters {
    /// ES, CS, SS, DS, FS, GS: in encoding order.
    pub segments: [Segment; 6],
    /// Local descriptor table.
    pub ldt: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdt: DescriptorTable,
    /// Interrupt descriptor table.
    pub idt: DescriptorTable,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8: bits 7..4 of the task priority.
    pub cr8: u64,
    /// XCR0: see [`crate::cpuid::xsave`].
    pub xcr0: u64,
    /// Extended feature enable register.
    pub efer: u64,
    /// Local APIC base register.
    pub apic_base: u64,
}

impl SystemRegisters {
    /// Index of ES in `segments`.
    pub const ES: usize = 0;
    /// Index of CS.
    pub const CS: usize = 1;
    /// Index of SS.
    pub const SS: usize = 2;
    /// Index of DS.
    pub const DS: usize = 3;
    /// Index of FS.
    pub const FS: usize = 4;
    /// Index of GS.
    pub const GS: usize = 5;

    /// Power-up values.
    #[must_use]
    pub fn reset(bootstrap: bool) -> Self {
        let data = Segment::real(0, 0, 0x3 | Segment::CODE_OR_DATA);
        let mut segments = [data; 6];
        segments[Self::CS] = Segment::real(0xF000, 0xFFFF_0000, 0xB | Segment::CODE_OR_DATA);
        Self {
            segments,
            ldt: Segment::real(0, 0, 0x2),
            tr: Segment::real(0, 0, 0xB),
            gdt: DescriptorTable { base: 0, limit: 0xFFFF },
            idt: DescriptorTable { base: 0, limit: 0xFFFF },
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            xcr0: crate::cpuid::xsave::X87,
            efer: 0,
            apic_base: 0xFEE0_0800 | u64::from(bootstrap) << 8,
        }
    }
}
