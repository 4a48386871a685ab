//! An answer to a listing, as long as it is one.
//!
//! object_store takes every XML document for a listing of S3's and Google's kind, because nothing in one is mandatory: a store or something
//! before it that answers 200 with the description of an error, or with a page of its own, would be read as an empty folder. That would
//! prove absences and gaps that there are not. So the root element is looked for, and without it the answer is a failed one, which is
//! asked for again.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use object_store::client::HttpError;

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

/// A body that ends with an error unless it begins as a listing does.
pub(super) struct ListingBody<B, E> {
    body: B,
    /// Still looked for, in what has come so far.
    head: Option<(ListingKind, Vec<u8>)>,
    /// What to say if it does not come.
    no_listing: E,
}

impl<B, E: Fn() -> HttpError> ListingBody<B, E> {
    /// `kind` is `None` for every other answer, which passes as it is.
    pub(super) fn new(body: B, kind: Option<ListingKind>, no_listing: E) -> ListingBody<B, E> {
        ListingBody { body, head: kind.map(|kind| (kind, Vec::new())), no_listing }
    }

    fn look(&mut self, bytes: &[u8]) {
        let Some((kind, head)) = &mut self.head else { return };
        head.extend(bytes.iter().take(LONGEST_HEAD.saturating_sub(head.len())));
        let root = kind.root();
        if head.windows(root.len()).any(|part| part == root) {
            self.head = None;
        }
    }
}

impl<B, E> Body for ListingBody<B, E>
where
    B: Body<Data = Bytes, Error = HttpError> + Unpin,
    E: Fn() -> HttpError + Unpin,
{
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(bytes) = frame.data_ref() {
                    this.look(bytes);
                }
            }
            // Said once: what follows an error is the end.
            Poll::Ready(None) if this.head.take().is_some() => {
                return Poll::Ready(Some(Err((this.no_listing)())));
            }
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.head.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
