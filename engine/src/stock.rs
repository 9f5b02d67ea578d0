//! What engines keep of guest code from one partition to the next.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// A place where a partition leaves what it made of its guest's code, for partitions that begin with the same memory. What
/// is in it is the engine's own, which says what fits whom, and trusts none of it unlooked at. Clones are the same place.
#[derive(Clone, Default)]
pub struct CodeStock(Arc<OnceLock<Arc<dyn Any + Send + Sync>>>);

impl CodeStock {
    /// What was left, if it is of this kind.
    #[must_use]
    pub fn get<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(self.0.get()?).downcast().ok()
    }

    /// Leaves something, made only if the place is empty.
    pub fn put<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) {
        let _ = self.0.get_or_init(|| Arc::new(make()));
    }
}

impl fmt::Debug for CodeStock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.0.get().is_some() { "filled" } else { "empty" };
        f.debug_tuple("CodeStock").field(&state).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_to_leave_something_has_left_it() {
        let stock = CodeStock::default();
        let other = stock.clone();
        assert_eq!(other.get::<u8>(), None);
        stock.put(|| 2_u8);
        other.put(|| 3_u8);
        assert_eq!(other.get::<u8>().as_deref(), Some(&2));
        assert_eq!(other.get::<u16>(), None);
    }
}
