//! Which engine runs the guest. Only this crate knows them all.

use std::str::FromStr;

use engine::Engine;
use engine_kvm::Kvm;
use engine_soft::Soft;

pub use engine::cpuid::CpuModel;
pub use engine_kvm::{Fitness as KvmFitness, fitness as kvm_fitness};
/// What the host's CPU lacks for the software engine to give guests one of x86-64-v3.
pub use engine_soft::exec::fpu::avx::missing as host_lacks_of_v3;

use crate::Result;

/// What the user asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum EngineChoice {
    /// KVM where it is fit, else soft.
    #[default]
    Auto,
    /// The software engine.
    Soft,
    /// The software engine, only interpreting.
    Interp,
    /// KVM, without a question.
    Kvm,
}

impl EngineChoice {
    /// Every choice, as the user writes it.
    pub const NAMES: [(&str, Self); 4] =
        [("auto", Self::Auto), ("soft", Self::Soft), ("interp", Self::Interp), ("kvm", Self::Kvm)];
}

impl FromStr for EngineChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let known = Self::NAMES.iter().find(|(name, _)| *name == text);
        known.map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<_> = Self::NAMES.iter().map(|(name, _)| *name).collect();
            format!("no engine is named {text:?}; choose one of {}", names.join(", "))
        })
    }
}

/// An engine, and why it was chosen.
#[derive(Debug)]
pub struct Chosen {
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// One clause for the user.
    pub reason: String,
}

/// Opens an engine for a machine with processors of a model.
///
/// # Errors
/// The engine that was asked for by name cannot run on this host.
pub fn open(choice: EngineChoice, model: CpuModel) -> Result<Chosen> {
    let chosen = |engine, reason: &str| Chosen { engine, reason: reason.to_owned() };
    match choice {
        EngineChoice::Kvm => Ok(chosen(Box::new(Kvm::open()?), "asked for")),
        EngineChoice::Soft => Ok(chosen(Box::new(Soft::new()), "asked for")),
        EngineChoice::Interp => Ok(chosen(Box::new(Soft::interpreter()), "asked for")),
        EngineChoice::Auto => match kvm_fitness() {
            KvmFitness::Fit => {
                let kvm = Kvm::open()?;
                match lacking(model, &kvm.lacks_of_v3()?) {
                    None => Ok(chosen(Box::new(kvm), "KVM is fit")),
                    Some(reason) => {
                        tracing::warn!("{reason}: the software engine runs the machine");
                        Ok(chosen(Box::new(Soft::new()), &reason))
                    }
                }
            }
            unfit => Ok(chosen(Box::new(Soft::new()), &format!("KVM is {unfit}"))),
        },
    }
}

/// Why a KVM that is fit cannot give a guest processors of a model, if so.
fn lacking(model: CpuModel, of_v3: &[&str]) -> Option<String> {
    let is_short = model == CpuModel::V3 && !of_v3.is_empty();
    is_short.then(|| format!("--cpu v3 needs {}, which KVM does not lend here", of_v3.join(", ")))
}

/// The software engine with everything that is rare in it happening often, at moments that the seed decides: caches are
/// emptied, accesses take the slow path, blocks are single instructions. What a guest computes stays the same.
#[must_use]
pub fn stressed(seed: u64) -> Box<dyn Engine> {
    Box::new(Soft::stressed(seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_named() {
        assert_eq!("kvm".parse(), Ok(EngineChoice::Kvm));
        let error = "qemu".parse::<EngineChoice>().unwrap_err();
        assert!(error.contains("auto, soft, interp, kvm"), "{error}");
    }

    #[test]
    fn a_kvm_is_taken_that_has_what_is_asked_for() {
        assert_eq!(lacking(CpuModel::V2, &["AVX2"]), None);
        assert_eq!(lacking(CpuModel::V3, &[]), None);
        let reason = lacking(CpuModel::V3, &["AVX2", "FMA"]).unwrap();
        assert_eq!(reason, "--cpu v3 needs AVX2, FMA, which KVM does not lend here");
    }
}
