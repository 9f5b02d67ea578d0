//! Instructions that change where the program goes on (SDM vol. 1, 7.3.8).

mod far;
mod iret;
mod near;
mod system_call;

use iced_x86::Instruction;

use crate::insn::Exec;

/// The function that executes a control transfer; `None` if it is of another family.
#[must_use]
pub fn lookup(i: &Instruction) -> Option<Exec> {
    near::lookup(i).or_else(|| far::lookup(i)).or_else(|| iret::lookup(i)).or_else(|| system_call::lookup(i))
}
