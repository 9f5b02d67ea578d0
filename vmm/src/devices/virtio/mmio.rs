//! The MMIO transport (virtio 1.2, ch. 4.2, version 2) between a driver and a device.

use std::ops::Range;
use std::sync::atomic::Ordering;

use acpi_tables::aml;
use acpi_tables::{Aml, AmlSink};
use engine::GuestMemory;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as register;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::{Malformed, Request, VirtioDevice};
use crate::devices::{Action, InterruptLine, Registers, Snapshot};
use crate::layout::{VIRTIO, VIRTIO_GSI, VIRTIO_STRIDE};
use crate::{Error, Result};

/// "virt".
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "nvsi".
const VENDOR: u32 = 0x6973_766E;
/// Features of the transport and the queues.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A queue's registers and its place in the rings.
#[expect(missing_docs, reason = "the names are the registers")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    pub size: u16,
    pub ready: bool,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub next_available: u16,
    pub next_used: u16,
}

/// Everything about a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioMmioState {
    /// Which half of the device's features is shown.
    pub device_features_select: u32,
    /// Which half of the driver's features is written.
    pub driver_features_select: u32,
    /// What the driver accepted.
    pub driver_features: u64,
    /// The queue that registers are about.
    pub queue_select: u32,
    /// Causes of an interrupt not yet acknowledged.
    pub interrupt_status: u32,
    /// Status register.
    pub status: u32,
    /// The queues.
    pub queues: Vec<QueueState>,
    /// The device's own.
    pub position: u64,
}

/// A device in its slot.
#[derive(Debug)]
pub struct VirtioMmio {
    slot: u8,
    device: Box<dyn VirtioDevice>,
    queues: Vec<Queue>,
    line: InterruptLine,
    memory: GuestMemory,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    interrupt_status: u32,
    status: u32,
    touched: Vec<Range<u64>>,
}

impl VirtioMmio {
    /// A device at power-up.
    #[must_use]
    pub fn new(slot: u8, device: Box<dyn VirtioDevice>, line: InterruptLine, memory: GuestMemory) -> Self {
        let mut new = Self {
            slot,
            device,
            queues: Vec::new(),
            line,
            memory,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            interrupt_status: 0,
            status: 0,
            touched: Vec::new(),
        };
        new.reset();
        new
    }

    /// Back to power-up, by the machine or by the driver; the device's own position stays.
    pub fn reset(&mut self) {
        // The sizes are powers of two, so every queue can be made.
        self.queues = self.device.queues().iter().filter_map(|size| Queue::new(*size).ok()).collect();
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.interrupt_status = 0;
        self.status = 0;
        self.touched.clear();
    }

    /// Guest memory that was written since the last call.
    pub fn take_touched(&mut self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.touched)
    }

    fn features(&self) -> u64 {
        self.device.features() | FEATURES
    }

    fn queue(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(usize::try_from(self.queue_select).ok()?)
    }

    fn register(&mut self, offset: u32) -> u32 {
        let half = |value: u64, select| match select {
            0 => value as u32,
            1 => (value >> 32) as u32,
            _ => 0,
        };
        match offset {
            register::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            register::VIRTIO_MMIO_VERSION => VERSION,
            register::VIRTIO_MMIO_DEVICE_ID => self.device.id(),
            register::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            register::VIRTIO_MMIO_DEVICE_FEATURES => half(self.features(), self.device_features_select),
            register::VIRTIO_MMIO_QUEUE_NUM_MAX => self.queue().map_or(0, |queue| queue.max_size().into()),
            register::VIRTIO_MMIO_QUEUE_READY => self.queue().is_some_and(|queue| queue.ready()).into(),
            register::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt_status,
            register::VIRTIO_MMIO_STATUS => self.status,
            // No shared memory: its length is told as all ones.
            register::VIRTIO_MMIO_SHM_LEN_LOW
            | register::VIRTIO_MMIO_SHM_LEN_HIGH
            | register::VIRTIO_MMIO_SHM_BASE_LOW
            | register::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u32, value: u32) {
        match offset {
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES => self.accept(value),
            register::VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            register::VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value),
            register::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt_status &= !value,
            register::VIRTIO_MMIO_STATUS => self.set_status(value),
            register::VIRTIO_MMIO_QUEUE_READY => {
                if let Some(queue) = self.queue() {
                    queue.set_ready(value == 1);
                }
            }
            _ => self.place_queue(offset, value),
        }
    }

    /// Size and addresses of a queue, which are fixed once it is ready.
    fn place_queue(&mut self, offset: u32, value: u32) {
        let Some(queue) = self.queue().filter(|queue| !queue.ready()) else { return };
        match offset {
            register::VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            register::VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            register::VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            register::VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            register::VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            register::VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    /// Half of the features that the driver accepts; too late once they were agreed on.
    fn accept(&mut self, value: u32) {
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return;
        }
        match self.driver_features_select {
            0 => self.driver_features = self.driver_features & !0xFFFF_FFFF | u64::from(value),
            1 => self.driver_features = self.driver_features & 0xFFFF_FFFF | u64::from(value) << 32,
            _ => {}
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let mut status =
            value & 0xFF & !VIRTIO_CONFIG_S_NEEDS_RESET | self.status & VIRTIO_CONFIG_S_NEEDS_RESET;
        let modern = self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0;
        if !modern || self.driver_features & !self.features() != 0 {
            status &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        self.status = status;
    }

    fn notify(&mut self, queue: u32) {
        let live = self.status & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET);
        if live != VIRTIO_CONFIG_S_DRIVER_OK {
            return;
        }
        let Some(queue) = usize::try_from(queue).ok().filter(|n| *n < self.queues.len()) else { return };
        let interrupt = match self.serve(queue) {
            Ok(false) => return,
            Ok(true) => register::VIRTIO_MMIO_INT_VRING,
            Err(Malformed) => {
                tracing::warn!(
                    slot = self.slot,
                    queue,
                    "a virtio driver broke the rules; the device needs a reset"
                );
                self.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
                register::VIRTIO_MMIO_INT_CONFIG
            }
        };
        self.interrupt_status |= interrupt;
        self.line.pulse();
    }

    /// Carries out what waits in a queue. Gives whether the driver is to be told.
    fn serve(&mut self, queue: usize) -> std::result::Result<bool, Malformed> {
        let (queue, memory) = (&mut self.queues[queue], &self.memory);
        if !queue.is_valid(memory) {
            return Err(Malformed);
        }
        let mut told = false;
        // A driver on another processor can go on adding, so the waiting ones are counted once.
        let available = queue.avail_idx(memory, Ordering::Acquire).map_err(|_| Malformed)?;
        let waiting = available.0.wrapping_sub(queue.next_avail());
        if waiting > queue.size() {
            return Err(Malformed);
        }
        for _ in 0..waiting {
            let chain = queue.iter(memory).map_err(|_| Malformed)?.next().ok_or(Malformed)?;
            let head = chain.head_index();
            let mut request = Request::new(chain, memory, &mut self.touched)?;
            let written = self.device.process(&mut request)?;
            queue.add_used(memory, head, written).map_err(|_| Malformed)?;
            told |= queue.needs_notification(memory).map_err(|_| Malformed)?;
        }
        if waiting > 0 {
            let ring = queue.used_ring();
            self.touched.push(ring..ring.saturating_add(6 + 8 * u64::from(queue.size())));
        }
        Ok(told)
    }

    /// Bytes of the configuration space; what is beyond it reads as zeros.
    fn config(&self, offset: u64, size: u8) -> u64 {
        let byte = |n: u64| {
            let at = usize::try_from(offset.saturating_add(n)).ok()?;
            self.device.config().get(at).copied()
        };
        (0..u64::from(size.min(8))).rev().fold(0, |value, n| value << 8 | u64::from(byte(n).unwrap_or(0)))
    }
}

impl Registers for VirtioMmio {
    fn read(&mut self, offset: u64, size: u8, _now: u64) -> u64 {
        match offset.checked_sub(register::VIRTIO_MMIO_CONFIG.into()) {
            Some(offset) => self.config(offset, size),
            // Only whole registers can be read.
            None if size == 4 => self.register(offset as u32).into(),
            None => 0,
        }
    }

    fn write(&mut self, offset: u64, size: u8, value: u64, _now: u64) -> Action {
        if size == 4 && offset < register::VIRTIO_MMIO_CONFIG.into() {
            self.set_register(offset as u32, value as u32);
        }
        Action::None
    }
}

impl Snapshot for VirtioMmio {
    type State = VirtioMmioState;

    fn save(&self) -> VirtioMmioState {
        let queue = |queue: &Queue| {
            let state = queue.state();
            QueueState {
                size: state.size,
                ready: state.ready,
                descriptors: state.desc_table,
                available: state.avail_ring,
                used: state.used_ring,
                next_available: state.next_avail,
                next_used: state.next_used,
            }
        };
        VirtioMmioState {
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            interrupt_status: self.interrupt_status,
            status: self.status,
            queues: self.queues.iter().map(queue).collect(),
            position: self.device.position(),
        }
    }

    fn restore(&mut self, state: VirtioMmioState) -> Result<()> {
        let refused = |reason: String| Error::BadState { device: "a virtio device", reason };
        let sizes = self.device.queues();
        if state.queues.len() != sizes.len() {
            return Err(refused(format!("{} queues instead of {}", state.queues.len(), sizes.len())));
        }
        let queue = |(saved, max_size): (&QueueState, &u16)| {
            Queue::try_from(virtio_queue::QueueState {
                max_size: *max_size,
                next_avail: saved.next_available,
                next_used: saved.next_used,
                event_idx_enabled: false,
                size: saved.size,
                ready: saved.ready,
                desc_table: saved.descriptors,
                avail_ring: saved.available,
                used_ring: saved.used,
            })
        };
        let queues = state.queues.iter().zip(sizes).map(queue).collect::<std::result::Result<_, _>>();
        self.queues = queues.map_err(|error| refused(error.to_string()))?;
        self.device_features_select = state.device_features_select;
        self.driver_features_select = state.driver_features_select;
        self.driver_features = state.driver_features;
        self.queue_select = state.queue_select;
        self.interrupt_status = state.interrupt_status;
        self.status = state.status;
        self.device.set_position(state.position);
        self.touched.clear();
        Ok(())
    }
}

impl Aml for VirtioMmio {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let base = VIRTIO + VIRTIO_STRIDE * u64::from(self.slot);
        aml::Device::new(
            format!("VIO{}", self.slot).as_str().into(),
            vec![
                &aml::Name::new("_HID".into(), &"LNRO0005"),
                &aml::Name::new("_UID".into(), &self.slot),
                &aml::Name::new("_CCA".into(), &aml::ONE),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![
                        &aml::Memory32Fixed::new(true, base as u32, VIRTIO_STRIDE as u32),
                        &aml::Interrupt::new(true, true, false, false, (VIRTIO_GSI + self.slot).into()),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}
