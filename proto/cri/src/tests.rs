//! `runtime.proto` against the table of the interface.

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use std::collections::BTreeSet;

const TABLE: &str = include_str!("../runtime-v1.tsv");
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[test]
fn the_definition_has_every_row_of_the_table_and_no_other() {
    let expected: BTreeSet<String> = TABLE
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            line.split('\t')
                .collect::<Vec<_>>()
                .join(" ")
                .trim_end()
                .to_owned()
        })
        .collect();
    assert_eq!(
        expected
            .iter()
            .filter(|row| row.starts_with("rpc "))
            .count(),
        41
    );
    let found = rows();
    assert_eq!(
        expected.difference(&found).collect::<Vec<_>>(),
        Vec::<&String>::new()
    );
    assert_eq!(
        found.difference(&expected).collect::<Vec<_>>(),
        Vec::<&String>::new()
    );
}

fn rows() -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let file = &set.file[0];
    let mut rows = BTreeSet::new();
    for service in &file.service {
        for method in &service.method {
            let stream = if method.server_streaming() {
                "stream "
            } else {
                ""
            };
            let (input, output) = (short(method.input_type()), short(method.output_type()));
            rows.insert(format!(
                "rpc {} {}  {input} -> {stream}{output}",
                service.name(),
                method.name()
            ));
        }
    }
    for message in &file.message_type {
        rows.insert(format!("message {}", message.name()));
        for field in &message.field {
            rows.insert(format!(
                "field {} {} {} {}",
                message.name(),
                field.name(),
                field.number(),
                type_of(field, message)
            ));
        }
        for nested in &message.enum_type {
            rows.extend(values(
                &format!("{}.{}", message.name(), nested.name()),
                nested,
            ));
        }
    }
    for definition in &file.enum_type {
        rows.extend(values(definition.name(), definition));
    }
    rows
}

fn values<'a>(
    name: &'a str,
    definition: &'a EnumDescriptorProto,
) -> impl Iterator<Item = String> + 'a {
    let value_rows = definition.value.iter();
    value_rows.map(move |value| format!("enum {name} {} {}", value.name(), value.number()))
}

fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn type_of(field: &FieldDescriptorProto, message: &DescriptorProto) -> String {
    let name = match field.r#type() {
        Type::Message | Type::Enum => short(field.type_name()).to_owned(),
        other => other
            .as_str_name()
            .trim_start_matches("TYPE_")
            .to_lowercase(),
    };
    let entry = message
        .nested_type
        .iter()
        .find(|nested| nested.name() == name);
    if let Some(entry) = entry {
        let [key, value] = [&entry.field[0], &entry.field[1]].map(|part| type_of(part, entry));
        return format!("map<{key},{value}>");
    }
    match field.label() {
        Label::Repeated => format!("repeated {name}"),
        _ => name,
    }
}
