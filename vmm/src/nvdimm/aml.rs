//! The NV-DIMMs in the ACPI name space (ACPI 6.5, ch. 9.19): the bus `ACPI0012` and a child for each DIMM, whose `_DSM`
//! methods carry calls through the [mailbox](super::mailbox).
//!
//! What functions a DIMM or the bus has (function 0) AML knows itself: Linux asks for each of them anew when it meets one.
//!
//! There is no `_FIT`: the static NFIT says all there is. A call's argument may be an empty package, a package with an
//! empty buffer, or one with the input. Copies are kept short where the data are, since AML moves them word by word.

use acpi_tables::aml::{
    Arg, BufferData, DeRefOf, Device, Else, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule,
    FieldUpdateRule, If, Index, LessEqual, Local, Method, MethodCall, Mid, Name, ObjectType, OpRegion,
    OpRegionSpace, Path, Return, SizeOf, Store, Uuid as AmlUuid,
};
use acpi_tables::{Aml, aml};
use nvdimm_model::Handle;
use nvdimm_model::dsm::{INTEL_FAMILY, INVALID, MAX_TRANSFER, ROOT_FAMILY, intel_functions, root_functions};

use super::mailbox::{INPUT, OUTPUT, PAGE};
use super::plan::{DimmPlan, Plan};

/// Inputs and answers up to this size are moved by themselves, longer ones with the whole page.
const SHORT_INPUT: usize = 32;
const SHORT_OUTPUT: usize = 252;

/// What ObjectType says of a buffer and of a package.
const BUFFER: u8 = 3;
const PACKAGE: u8 = 4;

/// AML for `\_SB`; the mailbox's page is at guest-physical address `page`, its doorbell at I/O port `doorbell`.
#[must_use]
pub fn build(plan: &Plan, page: u64, doorbell: u16) -> Vec<u8> {
    let hid = Name::new("_HID".into(), &"ACPI0012");
    let region = OpRegion::new("MBOX".into(), OpRegionSpace::SystemMemory, &page, &(PAGE as u32));
    let port = OpRegion::new("BPRT".into(), OpRegionSpace::SystemIO, &doorbell, &4u8);
    let bell = field("BPRT", vec![named(b"BELL", 4)]);
    let head = [named(b"HNDL", 4), named(b"REVN", 4), named(b"FUNC", 4), named(b"ILEN", 4)];
    let input = field("MBOX", [&head[..], &[named(b"INPL", PAGE - INPUT)]].concat());
    let short_input = field("MBOX", vec![FieldEntry::Reserved(INPUT * 8), named(b"INPS", SHORT_INPUT)]);
    let output = field("MBOX", vec![named(b"OLEN", 4), named(b"OUTL", PAGE - OUTPUT)]);
    let short_output = field("MBOX", vec![FieldEntry::Reserved(OUTPUT * 8), named(b"OUTS", SHORT_OUTPUT)]);
    let carry = carry();
    let own_call = dsm(Handle::ROOT, &ROOT_FAMILY.to_string(), &[(1, root_functions(1))]);
    let dimms: Vec<Vec<u8>> = plan.dimms.iter().enumerate().map(|(n, d)| dimm(n, d)).collect();
    let mut children: Vec<&dyn Aml> =
        vec![&hid, &region, &port, &bell, &input, &short_input, &output, &short_output];
    let carry = Raw(carry);
    let own_call = Raw(own_call);
    let dimms: Vec<Raw> = dimms.into_iter().map(Raw).collect();
    children.extend([&carry as &dyn Aml, &own_call]);
    children.extend(dimms.iter().map(|d| d as &dyn Aml));
    bytes(&Device::new("NVDR".into(), children))
}

/// A DIMM's device.
fn dimm(n: usize, plan: &DimmPlan) -> Vec<u8> {
    let address = Name::new("_ADR".into(), &plan.handle.0);
    let answers = [1, 2].map(|revision: u8| (revision, intel_functions(revision.into(), plan.has_labels)));
    let call = Raw(dsm(plan.handle, &INTEL_FAMILY.to_string(), &answers));
    bytes(&Device::new(Path::new(&format!("NV{n:02}")), vec![&address, &call]))
}

/// `_DSM` of the bus or a DIMM: passes a call of the right family on, but for function 0 of these revisions.
fn dsm(handle: Handle, family: &str, answers: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let family = AmlUuid::new(family);
    let right = Equal::new(&Arg(0), &family);
    let known: Vec<Raw> =
        answers.iter().map(|(revision, answer)| Raw(known_answer(*revision, answer))).collect();
    let asks = Equal::new(&Arg(2), &aml::ZERO);
    let if_asks = If::new(&asks, known.iter().map(|answer| answer as &dyn Aml).collect());
    let call = MethodCall::new("CARY".into(), vec![&handle.0, &Arg(1), &Arg(2), &Arg(3)]);
    let pass_on = Return::new(&call);
    let nothing = BufferData::new(vec![0]);
    let refuse = Return::new(&nothing);
    bytes(&Method::new("_DSM".into(), 4, true, vec![&If::new(&right, vec![&if_asks, &pass_on]), &refuse]))
}

/// Gives an answer that is known beforehand, to a revision.
fn known_answer(revision: u8, answer: &[u8]) -> Vec<u8> {
    let same = Equal::new(&Arg(1), &revision);
    let answer = BufferData::new(answer.to_vec());
    let give = Return::new(&answer);
    bytes(&If::new(&same, vec![&give]))
}

/// `CARY(handle, revision, function, argument)`: one at a time, since all share the page.
fn carry() -> Vec<u8> {
    let (handle, revision, function, length) = (path("HNDL"), path("REVN"), path("FUNC"), path("ILEN"));
    let (data, size) = (Local(0), Local(1));
    let zero = aml::ZERO;
    let store_handle = Store::new(&handle, &Arg(0));
    let store_revision = Store::new(&revision, &Arg(1));
    let store_function = Store::new(&function, &Arg(2));
    let no_input = Store::new(&length, &zero);

    let argument_type = ObjectType::new(&Arg(3));
    let is_package = Equal::new(&argument_type, &PACKAGE);
    let elements = SizeOf::new(&Arg(3));
    let no_target = aml::ZERO;
    let first = Index::new(&no_target, &Arg(3), &zero);
    let element = DeRefOf::new(&first);
    let take = Store::new(&data, &element);
    let element_type = ObjectType::new(&data);
    let is_buffer = Equal::new(&element_type, &BUFFER);
    let bytes_in = SizeOf::new(&data);
    let measure = Store::new(&size, &bytes_in);
    let fits = LessEqual::new(&size, &(MAX_TRANSFER as u16));
    let set_length = Store::new(&length, &size);
    let short = LessEqual::new(&size, &(SHORT_INPUT as u8));
    let (short_input, long_input) = (path("INPS"), path("INPL"));
    let put_short = Store::new(&short_input, &data);
    let put_long = Store::new(&long_input, &data);
    let if_short = If::new(&short, vec![&put_short]);
    let else_long = Else::new(vec![&put_long]);
    // Storing an empty buffer into a field is not defined.
    let if_any = If::new(&size, vec![&set_length, &if_short, &else_long]);
    let if_fits = If::new(&fits, vec![&if_any]);
    let invalid = BufferData::new(INVALID.to_le_bytes().to_vec());
    let refuse = Return::new(&invalid);
    let else_refuse = Else::new(vec![&refuse]);
    let if_buffer = If::new(&is_buffer, vec![&measure, &if_fits, &else_refuse]);
    let if_elements = If::new(&elements, vec![&take, &if_buffer]);
    let if_package = If::new(&is_package, vec![&if_elements]);

    let bell = path("BELL");
    let ring = Store::new(&bell, &aml::ONE);
    let answer_length = path("OLEN");
    let get_length = Store::new(&size, &answer_length);
    let (short_output, long_output) = (path("OUTS"), path("OUTL"));
    let is_short = LessEqual::new(&size, &(SHORT_OUTPUT as u8));
    let get_short = Store::new(&data, &short_output);
    let get_long = Store::new(&data, &long_output);
    let if_short_answer = If::new(&is_short, vec![&get_short]);
    let else_long_answer = Else::new(vec![&get_long]);
    // Mid gives a buffer of exactly that length, where a field of up to eight bytes would turn into a number.
    let answer = Mid::new(&data, &zero, &size, &no_target);
    let give = Return::new(&answer);
    bytes(&Method::new(
        "CARY".into(),
        4,
        true,
        vec![
            &store_handle,
            &store_revision,
            &store_function,
            &no_input,
            &if_package,
            &ring,
            &get_length,
            &if_short_answer,
            &else_long_answer,
            &give,
        ],
    ))
}

/// AML that is finished.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

fn path(name: &str) -> Path {
    name.into()
}

fn named(name: &[u8; 4], bytes: usize) -> FieldEntry {
    FieldEntry::Named(*name, bytes * 8)
}

fn field(region: &str, entries: Vec<FieldEntry>) -> Field {
    Field::new(
        region.into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::Preserve,
        entries,
    )
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::{plan, records};
    use super::*;

    #[test]
    fn the_name_space_is_as_reviewed() {
        let aml = build(&plan(&records(&[1, 1])), 0xff000, 0x710);
        let rows: Vec<String> = aml
            .chunks(32)
            .map(|row| {
                let text: String =
                    row.iter().map(|&b| if b.is_ascii_graphic() { char::from(b) } else { '.' }).collect();
                let hex: Vec<String> = row.iter().map(|b| format!("{b:02x}")).collect();
                format!("{} {text}", hex.join(""))
            })
            .collect();
        insta::assert_snapshot!(rows.join("\n"));
    }

    /// iasl judges the table where it is installed.
    #[test]
    fn iasl_accepts_the_table() {
        let Ok(version) = std::process::Command::new("iasl").arg("-v").output() else {
            eprintln!("skipped: iasl is not installed (apt-get install acpica-tools)");
            return;
        };
        assert!(version.status.success());
        let scope = aml::Scope::raw("_SB_".into(), build(&plan(&records(&[1, 1])), 0xff000, 0x710));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("dsdt.aml");
        std::fs::write(&file, crate::acpi::table(*b"DSDT", 2, &scope)).unwrap();
        let out = std::process::Command::new("iasl").arg("-d").arg(&file).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let out = std::process::Command::new("iasl").arg(file.with_extension("dsl")).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    }
}
