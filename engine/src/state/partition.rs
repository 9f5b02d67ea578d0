//! What a partition has beside its vCPUs: time, and whose turn it is.

use crate::VcpuId;

/// The turn of a vCPU, where one host thread interleaves all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Turn {
    /// Who runs.
    pub vcpu: VcpuId,
    /// Instructions until another one does.
    pub left: u64,
}

/// Everything about a partition that no vCPU has. With the vCPUs' states, and memory, it decides all that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PartitionState {
    /// Guest time since power-on in nanoseconds.
    pub guest_time: u64,
    /// Instructions retired by all vCPUs since power-on; none where the engine does not count them.
    pub instructions: Option<u64>,
    /// Whose turn it is; none where vCPUs run side by side.
    pub turn: Option<Turn>,
}
