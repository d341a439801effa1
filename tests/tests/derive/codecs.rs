//! The codecs through their derives: both directions of each, and the name for `codec = …`.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};
use shizuku_kv::{
    ByteDeserialize, ByteSerialize, JsonByteDes, JsonByteSer, KeyValue, KeyValueWrite, KvReadError,
    MessagePackByteDes, MessagePackByteSer, PostcardByteDes, PostcardByteSer, ProtobufByteDes,
    ProtobufByteSer, StaticKeyIndexedValue,
};

use super::{Outcome, store};

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes)]
struct Json<T>(T);

#[derive(Debug, PartialEq, Serialize, Deserialize, MessagePackByteSer, MessagePackByteDes)]
struct MessagePack<T> {
    inner: T,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, PostcardByteSer, PostcardByteDes)]
enum Postcard<T> {
    Empty,
    Full(T),
}

#[derive(Clone, PartialEq, prost::Message, ProtobufByteSer, ProtobufByteDes)]
struct Protobuf {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, repeated, tag = "2")]
    numbers: Vec<u32>,
}

#[test]
fn each_pair_round_trips() -> Outcome {
    fn check<T: ByteSerialize + ByteDeserialize + PartialEq + Debug>(
        value: &T,
        bytes: &[u8],
    ) -> Outcome {
        let written = value.to_bytes()?;
        assert_eq!(written.as_ref(), bytes);
        assert_eq!(&T::from_bytes(&written)?, value);
        Ok(())
    }
    check(&Json(vec![1, 2]), b"[1,2]")?;
    check(&MessagePack { inner: 7 }, b"\x81\xa5inner\x07")?;
    check(&Postcard::Full("ab".to_owned()), b"\x01\x02ab")?;
    check(&Postcard::<u8>::Empty, b"\x00")?;
    check(&Protobuf { name: "ab".to_owned(), numbers: vec![7] }, b"\x0a\x02ab\x12\x01\x07")
}

#[derive(Debug, PartialEq, Serialize, Deserialize, KeyValue)]
#[kv(key = "packed.{id}", codec = messagepack)]
struct Packed<T> {
    id: u8,
    inner: T,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, KeyValue)]
#[kv(codec = postcard)]
struct Card {
    #[kv(key)]
    id: String,
    inner: u16,
}

#[derive(Clone, PartialEq, prost::Message, StaticKeyIndexedValue)]
#[kv(key = "message", codec = protobuf)]
struct Message {
    #[prost(string, tag = "1")]
    name: String,
}

#[tokio::test]
async fn codec_name_equals_the_pair_of_derives() -> Outcome {
    let store = store().await;
    let packed = Packed { id: 1, inner: "a".to_owned() };
    packed.create_write(&store).await?;
    assert_eq!(Packed::read_from(&store, 1).await?, Some(packed));
    let card = Card { id: "card.x".to_owned(), inner: 300 };
    card.create_write(&store).await?;
    assert_eq!(Card::read_from(&store, "card.x").await?, Some(card));
    let message = Message { name: "a".to_owned() };
    message.create_write(&store).await?;
    assert_eq!(Message::read(&store).await?, Some(message));
    assert_eq!(store.get("packed.1").await?.ok_or("it is absent")?.value, PACKED);
    assert_eq!(store.get("card.x").await?.ok_or("it is absent")?.value, &b"\x06card.x\xac\x02"[..]);
    assert_eq!(store.get("message").await?.ok_or("it is absent")?.value, &b"\x0a\x01a"[..]);
    Ok(())
}

/// `{"id": 1, "inner": "a"}`.
const PACKED: &[u8] = b"\x82\xa2id\x01\xa5inner\xa1a";

/// The error of the codec is the source, with its position.
#[tokio::test]
async fn decode_error_names_the_position() -> Outcome {
    let store = store().await;
    for (key, bytes) in [
        ("packed.1", &b"\x82\xa2id"[..]),
        ("card.x", b"\x06card.x\xac"),
        ("message", b"\x0a\x07abc"),
    ] {
        store.put(key, bytes.to_vec()).await?;
    }
    let check = |error: Option<KvReadError>, type_name: &str| match error {
        Some(KvReadError::Decode { source, type_name: found, .. }) => {
            assert_eq!(found, type_name);
            assert!(source.offset().is_some(), "{source}");
        }
        other => panic!("{other:?}"),
    };
    check(Packed::<String>::read_from(&store, 1).await.err(), "Packed");
    check(Card::read_from(&store, "card.x").await.err(), "Card");
    check(Message::read(&store).await.err(), "Message");
    Ok(())
}
