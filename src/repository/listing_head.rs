//! An answer to a listing, as long as it is one.
//!
//! object_store takes every XML document for a listing of S3's and Google's kind, because nothing in one is mandatory: a store or something
//! before it that answers 200 with the description of an error, or with a page of its own, would be read as an empty folder. That would
//! prove absences and gaps that there are not. So the root element is looked for, and without it the answer is a failed one, which is
//! asked for again.

/// The declaration and comments before a root element are shorter.
const LONGEST_HEAD: usize = 1024;

/// What a listing's document is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ListingKind {
    /// S3, what is compatible, and Google.
    ListBucketResult,
    /// Azure.
    EnumerationResults,
}

impl ListingKind {
    /// What a request with this query asks for, if it is a listing.
    pub(super) fn of(query: &str) -> Option<ListingKind> {
        query.split('&').find_map(|part| match part {
            "list-type=2" => Some(ListingKind::ListBucketResult),
            "comp=list" => Some(ListingKind::EnumerationResults),
            _ => None,
        })
    }

    fn root(self) -> &'static [u8] {
        match self {
            ListingKind::ListBucketResult => b"ListBucketResult",
            ListingKind::EnumerationResults => b"EnumerationResults",
        }
    }
}

/// The root element of a listing's document, still looked for in what has come so far.
pub(super) struct ListingHead {
    kind: ListingKind,
    seen: Vec<u8>,
}

impl ListingHead {
    pub(super) fn new(kind: ListingKind) -> ListingHead {
        ListingHead { kind, seen: Vec::new() }
    }

    /// Whether it has come with these bytes.
    pub(super) fn is_complete_with(&mut self, bytes: &[u8]) -> bool {
        let ListingHead { kind, seen } = self;
        seen.extend(bytes.iter().take(LONGEST_HEAD.saturating_sub(seen.len())));
        let root = kind.root();
        seen.windows(root.len()).any(|part| part == root)
    }
}
