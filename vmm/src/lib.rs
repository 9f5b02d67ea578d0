//! The machine: memory plan, ACPI, devices, boot, power.
