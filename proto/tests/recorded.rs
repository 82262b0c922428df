//! Messages as the programs of a version send them, kept as bytes: every later version reads them with the same meaning.
//!
//! `recorded/<version>/<service>` has a block for each message: the RPC with its direction and a number, the bytes in hexadecimal digits, and
//! what they mean, one field a line. A recording of a released version never changes. `POSTERN_RECORD=1` with this test writes those
//! of the present version again, for a change before its release.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message as _;
use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    ReflectMessage as _, ServiceDescriptor, Value,
};

/// The depth of a message within messages beyond which a sample has none: some contain themselves.
const MAX_DEPTH: usize = 6;

fn pool() -> DescriptorPool {
    DescriptorPool::decode(postern_proto::FILE_DESCRIPTOR_SET).unwrap()
}

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded")
}

/// The version by which recordings are kept: `0.1` for 0.1.7.
fn version() -> String {
    let numbers: Vec<&str> = env!("CARGO_PKG_VERSION").split('.').take(2).collect();
    numbers.join(".")
}

fn services(pool: &DescriptorPool) -> Vec<ServiceDescriptor> {
    pool.services().filter(|service| service.full_name().starts_with("postern.v1.")).collect()
}

/// A recorded message.
struct Block {
    method: String,
    direction: String,
    bytes: Vec<u8>,
    meaning: Vec<String>,
}

impl Block {
    fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        let title: Vec<&str> = lines.next().unwrap().split(' ').collect();
        let hex = lines.next().unwrap().strip_prefix("0x").unwrap();
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        Self {
            method: title[0].to_owned(),
            direction: title[1].to_owned(),
            bytes: (0..hex.len()).step_by(2).map(byte).collect(),
            meaning: lines.map(ToOwned::to_owned).collect(),
        }
    }
}

fn blocks(file: &Path) -> Vec<Block> {
    fs::read_to_string(file)
        .unwrap()
        .split("\n\n")
        .map(str::trim_end)
        .filter(|text| !text.is_empty())
        .map(Block::parse)
        .collect()
}

/// Returns what a message means, one field a line.
fn meaning(message: &DynamicMessage) -> Vec<String> {
    let mut lines = Vec::new();
    of_message(message, "", &mut lines);
    lines
}

fn of_message(message: &DynamicMessage, at: &str, lines: &mut Vec<String>) {
    assert_eq!(message.unknown_fields().count(), 0, "{} has lost a field", message.descriptor().full_name());
    let mut fields: Vec<(FieldDescriptor, &Value)> = message.fields().collect();
    fields.sort_by_key(|(field, _)| field.number());
    for (field, value) in fields {
        of_value(&field, value, &format!("{at}{}", field.name()), lines);
    }
    if message.fields().next().is_none() && !at.is_empty() {
        lines.push(format!("{at} is there"));
    }
}

fn of_value(field: &FieldDescriptor, value: &Value, at: &str, lines: &mut Vec<String>) {
    match value {
        Value::Message(message) => of_message(message, &format!("{at}."), lines),
        Value::List(list) => {
            for (index, value) in list.iter().enumerate() {
                of_value(field, value, &format!("{at}[{index}]"), lines);
            }
        }
        Value::Map(map) => {
            for (key, value) in map {
                of_value(field, value, &format!("{at}[{key:?}]"), lines);
            }
        }
        Value::EnumNumber(number) => {
            let Kind::Enum(of) = field.kind() else { panic!("{at} is no enum") };
            let name =
                of.get_value(*number).map_or_else(|| number.to_string(), |value| value.name().to_owned());
            lines.push(format!("{at} = {name}"));
        }
        Value::Bool(value) => lines.push(format!("{at} = {value}")),
        Value::I32(value) => lines.push(format!("{at} = {value}")),
        Value::I64(value) => lines.push(format!("{at} = {value}")),
        Value::U32(value) => lines.push(format!("{at} = {value}")),
        Value::U64(value) => lines.push(format!("{at} = {value}")),
        Value::F32(value) => lines.push(format!("{at} = {value}")),
        Value::F64(value) => lines.push(format!("{at} = {value}")),
        Value::String(value) => lines.push(format!("{at} = {value:?}")),
        Value::Bytes(value) => lines.push(format!("{at} = 0x{}", hex(value))),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes a message with each of its fields; of each `oneof` the one that the variant says.
fn sample(of: &MessageDescriptor, variant: usize, depth: usize) -> DynamicMessage {
    let mut message = DynamicMessage::new(of.clone());
    for field in of.fields() {
        if let Some(oneof) = field.containing_oneof() {
            let chosen = oneof.fields().nth(variant % oneof.fields().count());
            if !oneof.is_synthetic() && chosen.as_ref() != Some(&field) {
                continue;
            }
        }
        if depth == MAX_DEPTH && matches!(field.kind(), Kind::Message(_)) {
            continue;
        }
        let value = |number: usize| of_kind(&field, number, variant, depth);
        if field.is_map() {
            let Kind::Message(entry) = field.kind() else { panic!("a map has entries") };
            let value_field = entry.map_entry_value_field();
            let key = MapKey::String("key".to_owned());
            message.set_field(&field, Value::Map([(key, of_kind(&value_field, 0, variant, depth))].into()));
        } else if field.cardinality() == Cardinality::Repeated {
            message.set_field(&field, Value::List((0..if depth == 0 { 2 } else { 1 }).map(value).collect()));
        } else {
            message.set_field(&field, value(0));
        }
    }
    message
}

fn of_kind(field: &FieldDescriptor, number: usize, variant: usize, depth: usize) -> Value {
    let count = u32::try_from(100 * (number + 1)).unwrap() + field.number();
    match field.kind() {
        Kind::Message(of) => Value::Message(sample(&of, variant + number, depth + 1)),
        Kind::Enum(of) => {
            let values: Vec<i32> =
                of.values().map(|value| value.number()).filter(|value| *value != 0).collect();
            Value::EnumNumber(values[(variant + number) % values.len()])
        }
        Kind::Bool => Value::Bool(true),
        Kind::String => Value::String(format!("{} {count}", field.name())),
        Kind::Bytes => Value::Bytes(format!("{count}").into_bytes().into()),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(i32::try_from(count).unwrap()),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(count.into()),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(count),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(count.into()),
        Kind::Float => Value::F32(0.5),
        Kind::Double => Value::F64(0.5),
    }
}

/// Returns the number of samples that show each choice within a message: of its `oneof`s and of its enums.
fn choices(of: &MessageDescriptor, depth: usize) -> usize {
    let inner = of.fields().map(|field| {
        let kind = field.kind();
        if let Some(of) = kind.as_enum() {
            return of.values().count() - 1;
        }
        kind.as_message().filter(|_| depth < MAX_DEPTH).map_or(1, |inner| choices(inner, depth + 1))
    });
    let own = of.oneofs().map(|oneof| oneof.fields().count());
    inner.chain(own).max().unwrap_or(1).max(1)
}

fn record(service: &ServiceDescriptor) -> String {
    let mut text = String::new();
    for method in service.methods() {
        for (direction, of) in [("request", method.input()), ("response", method.output())] {
            for variant in 0..choices(&of, 0) {
                let message = sample(&of, variant, 0);
                let bytes = message.encode_to_vec();
                writeln!(text, "{} {direction} {}", method.name(), variant + 1).unwrap();
                writeln!(text, "0x{}", hex(&bytes)).unwrap();
                // As a reader has it: a field with its default value is not there.
                for line in meaning(&DynamicMessage::decode(of.clone(), bytes.as_slice()).unwrap()) {
                    writeln!(text, "{line}").unwrap();
                }
                text.push('\n');
            }
        }
    }
    text
}

#[test]
fn i8_messages_of_every_recorded_version_mean_the_same() {
    let pool = pool();
    if std::env::var_os("POSTERN_RECORD").is_some() {
        let dir = recorded().join(version());
        fs::create_dir_all(&dir).unwrap();
        for service in services(&pool) {
            fs::write(dir.join(service.name()), record(&service)).unwrap();
        }
    }
    let mut count = 0;
    for of_version in fs::read_dir(recorded()).unwrap() {
        for file in fs::read_dir(of_version.unwrap().path()).unwrap() {
            let file = file.unwrap().path();
            let name = format!("postern.v1.{}", file.file_name().unwrap().to_string_lossy());
            let service = pool.get_service_by_name(&name).unwrap_or_else(|| panic!("{name} is gone"));
            for Block { method, direction, bytes, meaning: recorded } in blocks(&file) {
                let what = format!("{}: {method} {direction}", file.display());
                let found = service.methods().find(|found| found.name() == method);
                let found = found.unwrap_or_else(|| panic!("{what}: the RPC is gone"));
                let of = if direction == "request" { found.input() } else { found.output() };
                let message = DynamicMessage::decode(of.clone(), bytes.as_slice())
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(meaning(&message), recorded, "{what}");
                let again = DynamicMessage::decode(of, message.encode_to_vec().as_slice()).unwrap();
                assert_eq!(again, message, "{what}");
                count += 1;
            }
        }
    }
    assert!(count >= 60, "{count} messages are recorded");
}

#[test]
fn each_rpc_of_this_version_is_recorded() {
    let pool = pool();
    let dir = recorded().join(version());
    let is_recorded: BTreeSet<(String, String)> = services(&pool)
        .iter()
        .filter(|service| dir.join(service.name()).exists())
        .flat_map(|service| {
            let of = service.name().to_owned();
            blocks(&dir.join(service.name())).into_iter().map(move |block| (of.clone(), block.method))
        })
        .collect();
    for service in services(&pool) {
        for method in service.methods() {
            let of = (service.name().to_owned(), method.name().to_owned());
            assert!(
                is_recorded.contains(&of),
                "{}.{} is not in proto/tests/recorded/{}; record it with POSTERN_RECORD=1, and look at what else that changes",
                of.0,
                of.1,
                version()
            );
        }
    }
}
