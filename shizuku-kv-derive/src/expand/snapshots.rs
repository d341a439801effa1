//! Tests that compare the generated code with files. `snapshots/NAME.rs` is the input, and
//! `snapshots/NAME.expanded.rs` is the output of the derives named in it.
//! `UPDATE_SNAPSHOTS=1 cargo test -p shizuku-kv-derive --all-features` rewrites them.

use std::path::Path;
use std::{env, fs};

use proc_macro2::TokenStream;
use quote::quote;
use syn::DeriveInput;

use super::{codec, expanded, record, static_key};
use crate::codec::Codec;
use crate::fallback;

/// Returns the output of one derive.
fn derived(name: &str, input: &DeriveInput) -> TokenStream {
    match name {
        "KeyValue" => expanded(input, record::expand, fallback::record),
        "StaticKeyIndexedValue" => expanded(input, static_key::expand, fallback::static_key),
        "JsonByteSer" => {
            expanded(input, |input| codec::serialize(input, Codec::Json), fallback::serialize)
        }
        "JsonByteDes" => {
            expanded(input, |input| codec::deserialize(input, Codec::Json), fallback::deserialize)
        }
        other => panic!("no snapshot knows the derive {other}"),
    }
}

fn check(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("snapshots");
    let text = fs::read_to_string(folder.join(format!("{name}.rs"))).unwrap();
    let input = syn::parse_str::<DeriveInput>(&text).unwrap();
    let mut written = TokenStream::new();
    for attribute in input.attrs.iter().filter(|attribute| attribute.path().is_ident("derive")) {
        attribute
            .parse_nested_meta(|derive| {
                let name = derive.path.require_ident()?.to_string();
                let derived = derived(&name, &input);
                written = quote!(#written #derived);
                Ok(())
            })
            .unwrap();
    }
    let written = prettyplease::unparse(&syn::parse2(written).unwrap());
    let path = folder.join(format!("{name}.expanded.rs"));
    if env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(path, written).unwrap();
    } else {
        let expected = fs::read_to_string(path).unwrap_or_default();
        assert!(
            expected == written,
            "{name} expands to something else than its snapshot; look at the difference with \
             `UPDATE_SNAPSHOTS=1 cargo test -p shizuku-kv-derive --all-features` and `git diff`"
        );
    }
}

#[test]
fn output_equals_its_snapshot() {
    for name in ["template", "options", "field_key", "pair", "static_key", "rejected"] {
        check(name);
    }
}
