//! The subjects of commits: `area: imperative`, at most 72 characters.

const MAX_SUBJECT: usize = 72;

/// Returns the mistake in the subject of a commit.
pub(crate) fn mistake(subject: &str) -> Option<&'static str> {
    if subject.chars().count() > MAX_SUBJECT {
        return Some("it has more than 72 characters");
    }
    let in_area = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-/., ".contains(c);
    let Some((area, text)) = subject.split_once(": ").filter(|(area, _)| area.chars().all(in_area))
    else {
        return Some("it does not start with an area, as in `memory: `");
    };
    let word = text.split([' ', ',']).next().unwrap_or_default();
    if area.is_empty() || word.is_empty() {
        Some("its area or its text is empty")
    } else if text.ends_with('.') {
        Some("it ends with a full stop")
    } else if !is_imperative(word) {
        Some("its text does not start with an imperative")
    } else {
        None
    }
}

/// Rules out articles, and verbs in another form, by their ends.
fn is_imperative(word: &str) -> bool {
    let articles = ["a", "an", "the", "this", "these", "some", "no", "all", "every", "each"];
    let verbs = [
        "bring", "embed", "exceed", "feed", "need", "ping", "proceed", "seed", "shed", "speed",
        "spring", "string", "succeed", "wring",
    ];
    let is_form = ["ed", "ing"].iter().any(|end| word.ends_with(end));
    let is_third = word.ends_with('s') && !["ss", "us", "as"].iter().any(|end| word.ends_with(end));
    !articles.contains(&word) && (verbs.contains(&word) || !(is_form || is_third))
}

#[test]
fn mistake_in_a_subject_is_found() {
    let long = format!("tests: {}", "x".repeat(66));
    for subject in [
        long.as_str(),
        "Format at width 100",
        "Tests: add one",
        "tests:add one",
        ": add one",
        "tests: ",
        "tests: add one.",
        "tests: a second server",
        "tests: added one",
        "tests: adds one",
        "tests: adding one",
    ] {
        assert!(mistake(subject).is_some(), "{subject}");
    }
    let fits = format!("tests: {}", "x".repeat(65));
    for subject in [fits.as_str(), "tests: add one", "rw_lock, docs: pass it on", ".ci: embed it"] {
        assert_eq!(mistake(subject), None, "{subject}");
    }
}
