//! The snapshot law as a test to stamp onto each device.

/// Makes a test: save, change, restore, equal; also through bytes, and into another device of the same make.
macro_rules! snapshot_law {
    ($name:ident, $make:expr, $change:expr) => {
        #[test]
        fn $name() {
            use $crate::devices::Snapshot;
            let mut device = $make;
            let fresh = device.save();
            $change(&mut device);
            let changed = device.save();
            assert_ne!(fresh, changed, "the change must be visible in the state");
            let bytes = postcard::to_allocvec(&changed).unwrap();
            device.restore(fresh).unwrap();
            assert_eq!(device.save(), ($make).save());
            device.restore(postcard::from_bytes(&bytes).unwrap()).unwrap();
            assert_eq!(device.save(), changed);
        }
    };
}

pub(crate) use snapshot_law;
