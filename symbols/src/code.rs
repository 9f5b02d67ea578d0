//! All code of a running guest's kernel: its own, and that of its modules.

use std::fmt;

use crate::orc::Entry;
use crate::{Kernel, Memory, Module};

/// Modules lie here (Linux Documentation/arch/x86/x86_64/mm.rst).
const MODULES: std::ops::RangeInclusive<u64> = 0xffff_ffff_a000_0000..=0xffff_ffff_feff_ffff;
/// After this many attempts that found nothing new, an address that no module has is taken for none.
const ATTEMPTS: u32 = 64;

/// A kernel and the modules that it has loaded.
#[derive(Debug, Clone)]
pub struct Code {
    kernel: Kernel,
    modules: Vec<Module>,
    attempts: u32,
}

/// A place in code: prints as `symbol+0x1a` or `symbol+0x1a [module]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// The symbol at or before it.
    pub symbol: &'a str,
    /// How far behind the symbol.
    pub offset: u64,
    /// The module, if it is not the kernel's own code.
    pub module: Option<&'a str>,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:#x}", self.symbol, self.offset)?;
        self.module.map_or(Ok(()), |module| write!(f, " [{module}]"))
    }
}

impl Code {
    /// A kernel that has loaded nothing yet.
    pub fn new(kernel: Kernel) -> Self {
        Self { kernel, modules: Vec::new(), attempts: 0 }
    }

    /// The kernel.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The modules that are known.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// Forgets the modules: the guest was reset.
    pub fn forget_modules(&mut self) {
        (self.modules, self.attempts) = (Vec::new(), 0);
    }

    /// Reads the guest's list of modules.
    pub fn find_modules(&mut self, memory: &mut dyn Memory) {
        if let Some(layout) = self.kernel.modules {
            self.modules = layout.read(memory, self.kernel.orc.as_ref().map(|orc| orc.format()));
        }
    }

    /// Whether an address may be in a module that is not known yet, so that what is found there may be told better later.
    pub fn is_strange(&self, address: u64) -> bool {
        let strange = MODULES.contains(&address) && self.module(address).is_none();
        strange && !self.kernel.is_code(address) && self.attempts < ATTEMPTS
    }

    /// Reads the guest's list of modules when an address may be in one that is not known yet.
    pub fn notice(&mut self, address: u64, memory: &mut dyn Memory) {
        if self.is_strange(address) {
            self.find_modules(memory);
            self.attempts = if self.module(address).is_some() { 0 } else { self.attempts + 1 };
        }
    }

    fn module(&self, address: u64) -> Option<&Module> {
        self.modules.iter().find(|module| module.text.contains(&address))
    }

    /// Whether this is an address of code that is known.
    pub fn is_code(&self, address: u64) -> bool {
        self.kernel.is_code(address) || self.module(address).is_some()
    }

    /// The place of an address in code that is known.
    pub fn place(&self, address: u64) -> Option<Place<'_>> {
        if let Some(module) = self.module(address) {
            let (symbol, offset) = module.symbols.lookup(address)?;
            return Some(Place { symbol, offset, module: Some(&module.name) });
        }
        let (symbol, offset) = self.kernel.lookup(address).filter(|_| self.kernel.is_code(address))?;
        Some(Place { symbol, offset, module: None })
    }

    /// The stack's layout at an address.
    pub(crate) fn orc(&self, address: u64) -> Option<Entry> {
        let table = match self.module(address) {
            Some(module) => module.orc.as_ref(),
            None => self.kernel.orc.as_ref().filter(|_| self.kernel.is_code(address)),
        };
        table?.find(address)
    }
}
