use prost::encoding::{DecodeContext, WireType, skip_field};

use super::*;

/// The code that `#[derive(prost::Message)]` writes for a number, a text, and a nested message.
#[derive(Debug, Default, PartialEq)]
struct Node {
    number: u32,
    text: String,
    next: Option<Box<Node>>,
}

impl prost::Message for Node {
    fn encode_raw(&self, buffer: &mut impl bytes::BufMut) {
        prost::encoding::uint32::encode(1, &self.number, buffer);
        prost::encoding::string::encode(2, &self.text, buffer);
        if let Some(next) = &self.next {
            prost::encoding::message::encode(3, &**next, buffer);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl bytes::Buf,
        context: DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        let (merged, field) = match tag {
            1 => (
                prost::encoding::uint32::merge(wire_type, &mut self.number, buffer, context),
                "number",
            ),
            2 => {
                (prost::encoding::string::merge(wire_type, &mut self.text, buffer, context), "text")
            }
            3 => {
                let next = self.next.get_or_insert_default();
                (prost::encoding::message::merge(wire_type, &mut **next, buffer, context), "next")
            }
            #[allow(deprecated, reason = "types in the wild still do this")]
            4 => {
                return Err(prost::DecodeError::new(
                    "hunter2, stack: [(\"hunter2\", \"hunter2\")] }",
                ));
            }
            5 => return Err(prost::DecodeError::new_unexpected_type_url("hunter2", "hunter2")),
            _ => return skip_field(wire_type, tag, buffer, context),
        };
        merged.map_err(|mut error| {
            error.push("Node", field);
            error
        })
    }

    fn encoded_len(&self) -> usize {
        let next = self.next.as_deref();
        prost::encoding::uint32::encoded_len(1, &self.number)
            + prost::encoding::string::encoded_len(2, &self.text)
            + next.map_or(0, |next| prost::encoding::message::encoded_len(3, next))
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

fn message(bytes: &[u8]) -> String {
    match from_bytes::<Node>(&Bytes::copy_from_slice(bytes)) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn round_trip() {
    let node = Node {
        number: 7,
        text: "x".to_owned(),
        next: Some(Box::new(Node { number: u32::MAX, text: "žlutý".to_owned(), next: None })),
    };
    let bytes = to_bytes(&node).unwrap_or_default();
    assert_eq!(
        bytes,
        &b"\x08\x07\x12\x01x\x1a\x0f\x08\xff\xff\xff\xff\x0f\x12\x07\xc5\xbelut\xc3\xbd"[..]
    );
    assert_eq!(from_bytes(&bytes), Ok(node));
    assert_eq!(from_bytes(&Bytes::new()), Ok(Node::default()));
}

/// Detects a change of prost's `Debug` output, which the library parses.
#[test]
fn errors_say_what_and_where() {
    for (bytes, expected) in [
        (&b"\x08"[..], "protobuf: Node.number: a number does not end at byte 1"),
        (b"\x12\x07hunter", "protobuf: Node.text: unexpected end at byte 2"),
        (b"\x12\x02\xff\xff", "protobuf: Node.text: a string is not UTF-8 at byte 4"),
        (
            b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            "protobuf: Node.text: unexpected end at byte 11",
        ),
        (
            b"\x0a\x00",
            "protobuf: Node.number: invalid wire type: length-delimited, expected varint at byte 1",
        ),
        (
            b"\x10\x07",
            "protobuf: Node.text: invalid wire type: varint, expected length-delimited at byte 1",
        ),
        (
            b"\x15",
            "protobuf: Node.text: invalid wire type: 32-bit, expected length-delimited at byte 1",
        ),
        (
            b"\x11",
            "protobuf: Node.text: invalid wire type: 64-bit, expected length-delimited at byte 1",
        ),
        (
            b"\x13",
            "protobuf: Node.text: invalid wire type: start of a group, expected length-delimited at byte 1",
        ),
        (
            b"\x14",
            "protobuf: Node.text: invalid wire type: end of a group, expected length-delimited at byte 1",
        ),
        (b"\x07", "protobuf: invalid wire type at byte 1"),
        (b"\x00", "protobuf: the number of a field is 0 at byte 1"),
        (b"\xf8\xff\xff\xff\xff\x01", "protobuf: the number of a field is too large at byte 6"),
        (b"\x3c", "protobuf: the end of another group, or of none at byte 1"),
        (
            b"\x1a\x02\x12\x02\xff\xff",
            "protobuf: Node.next: Node.text: a string is not UTF-8 at byte 6",
        ),
        (
            b"\x1a\x01\x08\x07",
            "protobuf: Node.next: a field is longer than what it is in at byte 4",
        ),
        (b"\x22\x07hunter2", "does not fit the type at byte 1"),
        (b"\x2a\x07hunter2", "does not fit the type at byte 1"),
    ] {
        assert_eq!(message(bytes), expected, "{bytes:?}");
    }
}

#[test]
fn long_path_is_named_by_its_end() {
    let deep = (0..200)
        .fold(Node::default(), |next, _| Node { next: Some(Box::new(next)), ..Node::default() });
    assert_eq!(
        from_bytes::<Node>(&to_bytes(&deep).unwrap_or_default())
            .map_err(|error| error.message().to_owned()),
        Err("protobuf: Node.next: Node.next: Node.next: Node.next: nested too deeply".to_owned())
    );
}

#[test]
fn unknown_form_of_an_error_shows_nothing() {
    for error in [
        "",
        "hunter2",
        "DecodeError { description: hunter2, stack: [] }",
        "DecodeError { description: InvalidVarint }",
        "DecodeError { description: Other { description: \"InvalidVarint, stack: []\" }, stack: [] }",
        "DecodeError { description: UnexpectedWireType { actual: hunter2, expected: Varint }, stack: [] }",
    ] {
        assert_eq!(shown(error), None, "{error}");
    }
    let odd = "DecodeError { description: InvalidVarint, stack: [(\"A b\", \"c\")] }";
    assert_eq!(shown(odd).as_deref(), Some("protobuf: a number does not end"));
}
