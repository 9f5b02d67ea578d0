//! Programs of two vCPUs, in all interleavings: the images over all runs and all cuts are counted, and the counts are those
//! published for the same programs with Armv8's DC CVAP and DSB in the places of CLWB and SFENCE.

use std::collections::{BTreeMap, BTreeSet};

use super::super::*;
use super::machine::{Values, execute, images};

/// What a thread does next; `r` is its one register.
#[derive(Debug, Clone, Copy)]
enum Do {
    /// A statement of the small language.
    Run(&'static str),
    /// r = variable.
    Load(&'static str),
    /// variable = r.
    Store(&'static str),
    /// Ends the thread unless r has this value.
    Expect(u8),
    /// Ends the `if` that begins here, of so many steps, when r is 0.
    SkipIfZero(usize),
    /// Waits until the variable is 0 and sets it to 1, locked.
    Lock(&'static str),
}

use Do::{Expect, Load, Lock, Run, SkipIfZero, Store};

#[derive(Clone)]
struct State {
    medium: Medium,
    memory: BTreeMap<&'static str, u8>,
    at: [usize; 2],
    register: [u8; 2],
}

impl State {
    fn assign(&mut self, statement: &'static str) {
        if let Some((left, value)) = statement.split_once('=') {
            let name = left.rsplit(' ').next().unwrap();
            self.memory.insert(name, value.parse().unwrap());
        }
    }

    fn load(&self, name: &str) -> u8 {
        self.memory.get(name).copied().unwrap_or(0)
    }
}

/// The images over all interleavings and all cuts, as the values of some variables.
fn explore(threads: &[&[Do]], variables: &[&str]) -> BTreeSet<Vec<u8>> {
    let zone = Zone { range: 0..1 << 20, dimms: vec![0] };
    let medium = Medium::new(Rules::default(), vec![zone], vec![Domain::Adr]);
    let mut found = BTreeSet::new();
    let start = State { medium, memory: BTreeMap::new(), at: [0; 2], register: [0; 2] };
    walk(&start, threads, variables, &mut found);
    found
}

fn walk(state: &State, threads: &[&[Do]], variables: &[&str], found: &mut BTreeSet<Vec<u8>>) {
    for image in images(&state.medium, &|_: u64| [0; 64]) {
        let values = Values(image);
        found.insert(variables.iter().map(|name| values.get(name)).collect());
    }
    for (thread, steps) in threads.iter().enumerate() {
        let Some(&step) = steps.get(state.at[thread]) else { continue };
        let mut next = state.clone();
        next.at[thread] += 1;
        let vcpu = thread as u8;
        match step {
            Run(statement) => {
                execute(&mut next.medium, vcpu, statement);
                next.assign(statement);
            }
            Load(name) => next.register[thread] = next.load(name),
            Store(name) => {
                let value = next.register[thread];
                next.memory.insert(name, value);
                execute(&mut next.medium, vcpu, &format!("{name}={value}"));
            }
            Expect(value) if next.register[thread] != value => next.at[thread] = steps.len(),
            SkipIfZero(count) if next.register[thread] == 0 => next.at[thread] += count,
            Expect(_) | SkipIfZero(_) => {}
            Lock(name) => {
                if next.load(name) != 0 {
                    continue;
                }
                next.memory.insert(name, 1);
                execute(&mut next.medium, vcpu, &format!("lock {name}=1"));
            }
        }
        walk(&next, threads, variables, found);
    }
}

#[test]
fn one_or_two_stores() {
    let xy = ["x", "y"];
    assert_eq!(explore(&[&[Run("x=1"), Run("y=1")]], &xy).len(), 4);
    assert_eq!(explore(&[&[Run("x=1"), Run("clflushopt x"), Run("y=1")]], &xy).len(), 4);
    assert_eq!(explore(&[&[Run("x=1"), Run("clwb x"), Run("sfence"), Run("y=1")]], &xy).len(), 3);
}

#[test]
fn row_18_flushing_anothers_store() {
    let writer = [Run("x=1")];
    let with = [Load("x"), Expect(1), Run("clwb x"), Run("sfence"), Run("y=1")];
    assert_eq!(explore(&[&writer, &with], &["x", "y"]).len(), 3);
    let without = [Load("x"), Expect(1), Run("clwb x"), Run("y=1")];
    assert_eq!(explore(&[&writer, &without], &["x", "y"]).len(), 4);
}

#[test]
fn row_42_message_passing() {
    let writer = [Run("x=42"), Run("y=7")];
    let reader =
        [Load("y"), Expect(7), Run("mfence"), Run("clwb x"), Run("clwb y"), Run("sfence"), Run("z=1")];
    let found = explore(&[&writer, &reader], &["x", "y", "z"]);
    assert_eq!(found.len(), 5);
    assert!(found.iter().all(|v| v[2] == 0 || (v[0] == 42 && v[1] == 7)));
}

#[test]
fn row_43_value_passing() {
    let writer = [Run("x=1"), Run("y=1")];
    let reader = [Load("y"), Run("mfence"), Run("clwb x"), Run("sfence"), Store("z")];
    let found = explore(&[&writer, &reader], &["x", "y", "z"]);
    assert_eq!(found.len(), 6);
    assert!(found.contains(&vec![1, 0, 1]) && !found.contains(&vec![0, 1, 1]));
}

#[test]
fn row_44_each_flushes_the_others() {
    let a = [Run("x=1"), Run("mfence"), Run("clwb y"), Run("sfence"), Run("z=1")];
    let b = [Run("y=1"), Run("mfence"), Run("clwb x"), Run("sfence"), Run("w=1")];
    let found = explore(&[&a, &b], &["x", "y", "z", "w"]);
    assert_eq!(found.len(), 15);
    assert!(!found.contains(&vec![0, 0, 1, 1]));
}

#[test]
fn row_45_under_a_lock() {
    let a = [
        Lock("l"),
        Run("x=1"),
        Run("y=1"),
        Run("clwb x"),
        Run("sfence"),
        Run("clwb y"),
        Run("sfence"),
        Run("l=0"),
    ];
    let b = [Lock("l"), Load("x"), SkipIfZero(3), Run("z=1"), Run("clwb z"), Run("sfence"), Run("l=0")];
    let found = explore(&[&a, &b], &["x", "y", "z", "l"]);
    assert_eq!(found.len(), 10);
    assert!(found.iter().all(|v| v[2] == 0 || (v[0] == 1 && v[1] == 1)));
}
