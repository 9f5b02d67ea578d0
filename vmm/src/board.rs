//! The board: every device in its place, and the paths between them and the processors.

use std::ops::Range;

use acpi_tables::Aml;
use engine::{GuestMemory, Msi};
use serde::{Deserialize, Serialize};

use crate::devices::virtio::{Block, DiskSpec, Entropy, VirtioDevice, VirtioMmio, VirtioMmioState};
use crate::devices::{
    Action, Doorbell, IoApic, IoApicState, PmTimer, Power, Registers, Rtc, RtcState, Serial, SerialBackend,
    SerialPlace, SerialState, Snapshot, Wires, all_ones,
};
use crate::layout::{self, port};
use crate::nvdimm::{Nvdimms, NvdimmsState};
use crate::{Error, Result};

/// What the system control port B shows: the output of the speaker's timer, which some calibration loops wait for.
const SYSTEM_CONTROL_B: u64 = 0x20;

const FLUSH_HINTS_START: u64 = layout::FLUSH_HINTS;
const FLUSH_HINTS_LAST: u64 = layout::FLUSH_HINTS + layout::DIMMS as u64 * layout::FLUSH_HINT_STRIDE - 1;

/// What a board is built from.
pub struct BoardSpec {
    /// The host's end of the console.
    pub console: Box<dyn SerialBackend>,
    /// The host's end of the control channel.
    pub control: Box<dyn SerialBackend>,
    /// Seconds since 1970 that the clock shows at power-on.
    pub wall_clock: u64,
    /// Decides what the entropy device says.
    pub seed: u64,
    /// The NV-DIMMs in their places.
    pub nvdimms: Nvdimms,
    /// The guest's memory, for devices that reach into it.
    pub memory: GuestMemory,
}

impl std::fmt::Debug for BoardSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BoardSpec").field("wall_clock", &self.wall_clock).finish_non_exhaustive()
    }
}

/// The devices of a machine.
#[derive(Debug)]
pub struct Board {
    wires: Wires,
    ioapic: IoApic,
    console: Serial,
    control: Serial,
    power: Power,
    pm_timer: PmTimer,
    rtc: Rtc,
    doorbell: Doorbell,
    virtio: Vec<VirtioMmio>,
    nvdimms: Nvdimms,
    /// Guest memory that devices wrote, not yet told to the engine.
    touched: Vec<Range<u64>>,
    memory: GuestMemory,
    wall_clock: u64,
}

/// Everything about a board that the guest could tell apart.
#[expect(missing_docs, reason = "the names are the devices")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BoardState {
    pub ioapic: IoApicState,
    pub console: SerialState,
    pub control: SerialState,
    pub rtc: RtcState,
    pub virtio: Vec<VirtioMmioState>,
    pub nvdimms: NvdimmsState,
}

impl Board {
    /// A board at power-up.
    #[must_use]
    pub fn new(spec: BoardSpec) -> Self {
        let wires = Wires::default();
        let serial = |port, gsi, number, backend| {
            Serial::new(SerialPlace { port, gsi, number }, wires.line(gsi), backend)
        };
        let mut board = Self {
            ioapic: IoApic::default(),
            console: serial(port::COM1, layout::COM1_GSI, 0, spec.console),
            control: serial(port::COM2, layout::COM2_GSI, 1, spec.control),
            power: Power,
            pm_timer: PmTimer,
            rtc: Rtc::new(spec.wall_clock),
            doorbell: Doorbell,
            virtio: Vec::new(),
            touched: Vec::new(),
            nvdimms: spec.nvdimms,
            memory: spec.memory,
            wall_clock: spec.wall_clock,
            wires,
        };
        board.fill_slot(Box::new(Entropy::new(spec.seed)));
        board
    }

    /// Puts a disk into the next free slot; `/dev/vda` is the first.
    ///
    /// # Errors
    /// The file cannot be used, or there is no slot left.
    pub fn plug(&mut self, disk: &DiskSpec) -> Result<()> {
        if self.virtio.len() == usize::from(layout::VIRTIO_SLOTS) {
            return Err(Error::VirtioSlots(self.virtio.len() + 1));
        }
        // The entropy device has the first slot.
        let n = self.virtio.len() as u8 - 1;
        self.fill_slot(Box::new(Block::open(disk, n)?));
        Ok(())
    }

    fn fill_slot(&mut self, device: Box<dyn VirtioDevice>) {
        let slot = self.virtio.len() as u8;
        let line = self.wires.line(layout::VIRTIO_GSI + slot);
        self.virtio.push(VirtioMmio::new(slot, device, line, self.memory.clone()));
    }

    /// Back to power-up. What is outside the machine stays: backends, disks, NV-DIMMs.
    pub fn reset(&mut self) {
        self.wires.take().for_each(drop);
        self.ioapic = IoApic::default();
        self.console.reset();
        self.control.reset();
        self.rtc = Rtc::new(self.wall_clock);
        self.virtio.iter_mut().for_each(VirtioMmio::reset);
        self.touched.clear();
        self.nvdimms.reset();
    }

    /// Tells the console's backend what the guest has said before.
    pub fn tell_console(&mut self, bytes: &[u8]) {
        self.console.tell(bytes);
    }

    /// Whether disks are plugged in: what a guest knows of their contents is not part of a board's state.
    #[must_use]
    pub fn has_disks(&self) -> bool {
        self.virtio.len() > 1
    }

    /// The NV-DIMMs.
    #[must_use]
    pub fn nvdimms(&self) -> &Nvdimms {
        &self.nvdimms
    }

    /// The NV-DIMMs, to switch their power.
    pub fn nvdimms_mut(&mut self) -> &mut Nvdimms {
        &mut self.nvdimms
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The device behind an I/O port and the offset in it.
    fn at_port(&mut self, port: u16) -> Option<(&mut dyn Registers, u64)> {
        let (device, first): (&mut dyn Registers, u16) = match port {
            port::RTC..=0x71 => (&mut self.rtc, port::RTC),
            port::COM2..=0x2FF => (&mut self.control, port::COM2),
            port::COM1..=0x3FF => (&mut self.console, port::COM1),
            port::POWER..=0x602 => (&mut self.power, port::POWER),
            port::PM_TIMER..=0x60B => (&mut self.pm_timer, port::PM_TIMER),
            port::DOORBELL..=0x707 => (&mut self.doorbell, port::DOORBELL),
            _ => return None,
        };
        Some((device, u64::from(port - first)))
    }

    /// The device behind a guest-physical address and the offset in it.
    fn at_address(&mut self, address: u64) -> Option<(&mut dyn Registers, u64)> {
        const VIRTIO_END: u64 = layout::VIRTIO + layout::VIRTIO_SLOTS as u64 * layout::VIRTIO_STRIDE - 1;
        const IOAPIC_END: u64 = layout::IOAPIC + layout::IOAPIC_SIZE - 1;
        match address {
            layout::VIRTIO..=VIRTIO_END => {
                let offset = address - layout::VIRTIO;
                let slot = usize::try_from(offset / layout::VIRTIO_STRIDE).ok()?;
                Some((self.virtio.get_mut(slot)?, offset % layout::VIRTIO_STRIDE))
            }
            layout::IOAPIC..=IOAPIC_END => Some((&mut self.ioapic, address - layout::IOAPIC)),
            _ => None,
        }
    }

    /// IN.
    pub fn read_port(&mut self, port: u16, size: u8, now: u64) -> u64 {
        if port == port::SYSTEM_CONTROL_B {
            return SYSTEM_CONTROL_B;
        }
        self.at_port(port).map_or(all_ones(size), |(device, offset)| device.read(offset, size, now))
    }

    /// OUT.
    pub fn write_port(&mut self, port: u16, size: u8, value: u64, now: u64) -> Action {
        if port == port::DSM_DOORBELL {
            self.ring_mailbox(size);
            return Action::None;
        }
        self.at_port(port).map_or(Action::None, |(device, offset)| device.write(offset, size, value, now))
    }

    /// The guest's AML has put a call into the NV-DIMMs' mailbox.
    fn ring_mailbox(&mut self, size: u8) {
        if size != 4 {
            return;
        }
        self.touched.push(layout::DSM_MAILBOX);
        match self.nvdimms.ring(&self.memory) {
            Ok(call) => tracing::debug!(handle = ?call.handle, function = call.function, "a DSM call"),
            Err(error) => tracing::error!(%error, "the NV-DIMMs' mailbox is not in guest memory"),
        }
    }

    /// A load from where there is no memory.
    pub fn read_memory(&mut self, address: u64, size: u8, now: u64) -> u64 {
        if let FLUSH_HINTS_START..=FLUSH_HINTS_LAST = address {
            return self.nvdimms.hints().read(address - layout::FLUSH_HINTS, size);
        }
        self.at_address(address).map_or(all_ones(size), |(device, offset)| device.read(offset, size, now))
    }

    /// A store to where there is no memory.
    pub fn write_memory(&mut self, address: u64, size: u8, value: u64, now: u64) -> Action {
        if let FLUSH_HINTS_START..=FLUSH_HINTS_LAST = address {
            self.nvdimms.write_hint(address - layout::FLUSH_HINTS, size);
            return Action::None;
        }
        self.at_address(address)
            .map_or(Action::None, |(device, offset)| device.write(offset, size, value, now))
    }

    /// Lets the backends' input in. Gives whether there was any.
    pub fn pump(&mut self) -> bool {
        self.console.pump() | self.control.pump()
    }

    /// The interrupt messages that the accesses since the last call caused.
    pub fn interrupts(&mut self) -> impl Iterator<Item = Msi> + use<'_> {
        self.wires.take().filter_map(|pin| self.ioapic.edge(pin))
    }

    /// Guest memory that devices have written since the last call.
    pub fn take_touched(&mut self) -> Vec<Range<u64>> {
        let mut touched = std::mem::take(&mut self.touched);
        self.virtio.iter_mut().for_each(|slot| touched.append(&mut slot.take_touched()));
        touched
    }

    /// AML for the root of the name space.
    #[must_use]
    pub fn root_aml(&self) -> Vec<u8> {
        print(&[&self.power])
    }

    /// AML for `\_SB`.
    #[must_use]
    pub fn system_bus_aml(&self) -> Vec<u8> {
        let mut aml = print(&[&self.console, &self.control, &self.rtc]);
        self.virtio.iter().for_each(|slot| slot.to_aml_bytes(&mut aml));
        if self.has_nvdimms() {
            aml.extend(self.nvdimms.aml());
        }
        aml
    }

    /// Finished ACPI tables that the devices bring.
    #[must_use]
    pub fn tables(&self) -> Vec<Vec<u8>> {
        self.has_nvdimms().then(|| self.nvdimms.nfit()).into_iter().collect()
    }

    fn has_nvdimms(&self) -> bool {
        !self.nvdimms.plan().dimms.is_empty()
    }
}

fn print(devices: &[&dyn Aml]) -> Vec<u8> {
    let mut bytes = Vec::new();
    devices.iter().for_each(|device| device.to_aml_bytes(&mut bytes));
    bytes
}

impl Snapshot for Board {
    type State = BoardState;

    fn save(&self) -> BoardState {
        BoardState {
            ioapic: self.ioapic.save(),
            console: self.console.save(),
            control: self.control.save(),
            rtc: self.rtc.save(),
            virtio: self.virtio.iter().map(Snapshot::save).collect(),
            nvdimms: self.nvdimms.save(),
        }
    }

    fn restore(&mut self, state: BoardState) -> Result<()> {
        if state.virtio.len() != self.virtio.len() {
            let reason =
                format!("{} virtio slots are filled instead of {}", state.virtio.len(), self.virtio.len());
            return Err(Error::BadState { device: "the board", reason });
        }
        for (slot, state) in self.virtio.iter_mut().zip(state.virtio) {
            slot.restore(state)?;
        }
        self.ioapic.restore(state.ioapic)?;
        self.console.restore(state.console)?;
        self.control.restore(state.control)?;
        self.rtc.restore(state.rtc)?;
        self.nvdimms.restore(state.nvdimms)?;
        self.wires.take().for_each(drop);
        self.touched.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::Unconnected;
    use crate::layout::{MIB, MemoryPlan};
    use crate::nvdimm::{Entropy, OpenDimms};

    fn board() -> Board {
        let dir = tempfile::tempdir().unwrap();
        let specs =
            ["a", "b"].map(|name| format!("{}/{name},size=32M", dir.path().display()).parse().unwrap());
        let dimms = OpenDimms::open(&specs, &Entropy::from_seed(0)).unwrap();
        let plan = MemoryPlan::new(64 * MIB, &dimms.region_sizes()).unwrap();
        let nvdimms = dimms.place(plan.persistent()).unwrap();
        let memory = crate::memory::map(&plan, nvdimms.memory()).unwrap();
        let (console, control) = (Box::new(Unconnected), Box::new(Unconnected));
        Board::new(BoardSpec { console, control, wall_clock: 0, seed: 0, nvdimms, memory })
    }

    #[test]
    fn where_nobody_listens_all_ones_are_read() {
        let mut board = board();
        assert_eq!(board.read_port(0x64, 1, 0), 0xFF);
        assert_eq!(board.read_port(0xCF8, 4, 0), 0xFFFF_FFFF);
        assert_eq!(board.read_memory(0xD800_0000, 8, 0), u64::MAX);
        assert_eq!(board.read_port(0x61, 1, 0), 0x20);
    }

    #[test]
    fn an_interrupt_goes_from_a_port_through_the_ioapic() {
        let mut board = board();
        board.write_memory(layout::IOAPIC, 4, 0x18, 0);
        board.write_memory(layout::IOAPIC + 0x10, 4, 0x31, 0);
        assert_eq!(board.interrupts().count(), 0);
        board.write_port(0x3F9, 1, 2, 0);
        let msi: Vec<Msi> = board.interrupts().collect();
        assert_eq!(msi, [Msi { address: 0xFEE0_0000, data: 0x31 }]);
    }

    #[test]
    fn nonsense_everywhere_is_survived() {
        let mut board = board();
        let mut ends = 0;
        for port in 0..=u16::MAX {
            for (size, value) in [(1, 0xFF), (2, 0x1243), (4, u64::from(u32::MAX))] {
                ends += u32::from(board.write_port(port, size, value, 0) != Action::None);
                board.read_port(port, size, u64::MAX);
            }
        }
        assert_eq!(ends, 2, "the two doorbell registers");
        for address in (layout::MMIO_HOLE.start..layout::MMIO_HOLE.end).step_by(0xFFF) {
            board.write_memory(address, 8, u64::MAX, 0);
            board.read_memory(address, 8, 0);
        }
    }

    #[test]
    fn flush_hints_and_the_mailbox_are_reached() {
        use vm_memory::{Bytes, GuestAddress};
        let mut board = board();
        board.write_memory(layout::FLUSH_HINTS + layout::FLUSH_HINT_STRIDE + 8, 8, 1, 0);
        assert_eq!([0, 1].map(|dimm| board.nvdimms().hints().count(dimm)), [0, 1]);
        // Function 0 of the bus, revision 1: which functions are there.
        let page = GuestAddress(layout::DSM_MAILBOX.start);
        board.memory.write_obj([0_u32, 1, 0, 0], page).unwrap();
        board.write_port(port::DSM_DOORBELL, 1, 0, 0);
        assert_eq!(board.memory.read_obj::<u32>(page).unwrap(), 0, "rung with the wrong width");
        board.write_port(port::DSM_DOORBELL, 4, 0, 0);
        let [length, mask]: [u32; 2] = board.memory.read_obj(page).unwrap();
        assert!((1..=8).contains(&length) && mask & 1 == 1, "{length} bytes, {mask:#x}");
    }

    #[test]
    fn the_guest_is_told_of_its_nv_dimms() {
        let board = board();
        assert!(board.tables()[0].starts_with(b"NFIT"));
        assert!(board.system_bus_aml().windows(8).any(|part| part == b"ACPI0012"));
    }

    crate::devices::law::snapshot_law!(law, board(), |board: &mut Board| {
        board.write_port(0x3FF, 1, 0x5A, 0);
        board.write_memory(layout::IOAPIC, 4, 0x20, 0);
        board.write_memory(layout::FLUSH_HINTS, 8, 1, 0);
    });
}
