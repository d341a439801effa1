//! Version tokens: a written token is read back, and two are equal if their bytes are.

use shizuku_kv::VersionToken;

use super::reading::Input;

/// Reads the bytes as one token, and as two.
pub fn run(data: &[u8]) {
    let whole = reads_only_what_is_a_token(data);
    assert_eq!(VersionToken::opaque(data).is_ok(), data.len() <= 16);
    if let Ok(token) = VersionToken::opaque(data) {
        assert_eq!(VersionToken::from_bytes(&token.to_bytes()).unwrap(), token);
        assert_eq!((token.as_u64(), &token.to_bytes()[1..]), (None, data));
    }

    let mut input = Input(data);
    let len = input.below(20);
    let (one, other) = (input.take(len), input.0);
    if let (Some(one_token), Some(other_token)) =
        (reads_only_what_is_a_token(one), reads_only_what_is_a_token(other))
    {
        assert_eq!(one_token == other_token, one == other);
        assert_eq!(one_token.to_string() == other_token.to_string(), one == other);
    }

    let number = Input(data).number();
    let token = VersionToken::from_u64(number);
    assert_eq!((token.as_u64(), token.to_string()), (Some(number), number.to_string()));
    assert_eq!(VersionToken::from_bytes(&token.to_bytes()).unwrap(), token);
    // A number is not the same as its own bytes.
    assert_ne!(VersionToken::opaque(&number.to_be_bytes()).unwrap(), token);
    assert_eq!(whole == Some(token), data == token.to_bytes());
}

/// Returns a token of each kind.
pub fn examples() -> Vec<Vec<u8>> {
    let opaque = [&b""[..], b"abc", &[0; 16]].map(|token| VersionToken::opaque(token).unwrap());
    let numbers = [0, 1, u64::MAX].map(VersionToken::from_u64);
    let tokens = opaque.iter().chain(&numbers).map(VersionToken::to_bytes).collect::<Vec<_>>();
    let pair =
        |number: &Vec<u8>| [&(number.len() as u16).to_le_bytes(), &number[..], number].concat();
    let pairs = tokens.iter().map(pair).collect::<Vec<_>>();
    [tokens, pairs].concat()
}

/// Checks the format independently of the library.
fn reads_only_what_is_a_token(bytes: &[u8]) -> Option<VersionToken> {
    let is_token = match bytes {
        [1, number @ ..] => number.len() == 8,
        [2, opaque @ ..] => opaque.len() <= 16,
        _ => false,
    };
    let token = VersionToken::from_bytes(bytes);
    assert_eq!(token.is_ok(), is_token);
    if let Ok(token) = &token {
        assert_eq!(token.to_bytes(), bytes);
        assert_eq!(token.as_u64().is_some(), bytes[0] == 1);
    }
    token.ok()
}
