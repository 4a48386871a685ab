//! Real stores for tests: an S3 server in this process, Azurite and a Google Cloud Storage emulator as processes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::TryStreamExt;
use s3s::auth::SimpleAuth;
use s3s::dto::*;
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use walhold::repository::RepositorySettings;

/// The key of the test servers.
pub const ACCESS_KEY: &str = "AKIATESTTESTTEST";
/// Its secret, which no message may contain.
pub const SECRET_KEY: &str = "geheim-geheim-geheim";
/// The bucket that every server has.
pub const BUCKET: &str = "bucket";

/// Settings from pairs.
pub fn settings(url: &str, options: &[(&str, &str)]) -> RepositorySettings {
    let options: BTreeMap<_, _> =
        options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    RepositorySettings { url: url.to_owned(), options }
}

/// A repository in a directory.
pub fn directory(root: &Path, options: &[(&str, &str)]) -> RepositorySettings {
    settings(&format!("file://{}", root.display()), options)
}

/// What a store does with `If-None-Match: *`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conditions {
    /// Refuses the second object of a name, as AWS does.
    Enforced,
    /// Takes it and says nothing, as Garage does.
    Ignored,
}

/// What a server does with requests to delete, and how many there were.
#[derive(Default)]
pub struct Deletions {
    /// Objects whose key contains one of these stay: they are locked.
    pub locked: Mutex<Vec<String>>,
    /// Lists of objects are not understood.
    pub no_lists: AtomicBool,
    /// Requests that named one object.
    pub single: AtomicUsize,
    /// Requests that named many.
    pub lists: AtomicUsize,
}

impl Deletions {
    fn is_locked(&self, key: &str) -> bool {
        let locked = self.locked.lock().unwrap();
        locked.iter().any(|part| key.contains(part))
    }
}

/// An S3 server over HTTP in this process, with signatures checked.
pub struct S3Server {
    addr: SocketAddr,
    root: tempfile::TempDir,
    deletions: Arc<Deletions>,
    _runtime: tokio::runtime::Runtime,
}

impl S3Server {
    /// A server with one empty bucket.
    pub fn start(conditions: Conditions) -> S3Server {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(BUCKET)).unwrap();
        let deletions = Arc::new(Deletions::default());
        let store = ConditionalStore {
            deletions: Arc::clone(&deletions),
            files: FileSystem::new(root.path()).unwrap(),
            conditions,
            one_at_a_time: tokio::sync::Mutex::new(()),
        };
        let mut service = S3ServiceBuilder::new(store);
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = service.build();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let addr = listener.local_addr().unwrap();
        runtime.spawn(async move {
            loop {
                let Ok((socket, _)) = listener.accept().await else { continue };
                let service = service.clone();
                tokio::spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    let socket = hyper_util::rt::TokioIo::new(socket);
                    drop(http.serve_connection(socket, service).await);
                });
            }
        });
        S3Server { addr, root, deletions, _runtime: runtime }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What becomes of requests to delete.
    pub fn deletions(&self) -> &Deletions {
        &self.deletions
    }

    /// The directory that holds the bucket's objects as files.
    pub fn bucket_directory(&self) -> std::path::PathBuf {
        self.root.path().join(BUCKET)
    }

    /// A repository under this prefix.
    pub fn settings(&self, prefix: &str) -> RepositorySettings {
        s3_settings(self.addr, prefix)
    }
}

/// A repository in the bucket of a server, or of a proxy in front of it.
pub fn s3_settings(addr: SocketAddr, prefix: &str) -> RepositorySettings {
    settings(
        &format!("s3://{BUCKET}/{prefix}"),
        &[
            ("endpoint", &format!("http://{addr}")),
            ("region", "us-east-1"),
            ("access_key_id", ACCESS_KEY),
            ("secret_access_key", SECRET_KEY),
        ],
    )
}

/// s3s-fs looks before it writes, which two requests can do at once; AWS decides atomically.
struct ConditionalStore {
    files: FileSystem,
    conditions: Conditions,
    deletions: Arc<Deletions>,
    one_at_a_time: tokio::sync::Mutex<()>,
}

/// The whole body, checked against its checksum: a server that answers before it has read everything and then closes the
/// connection may take its answer back.
async fn received(body: Option<StreamingBlob>) -> S3Result<Option<StreamingBlob>> {
    let Some(body) = body else { return Ok(None) };
    let pieces: Vec<bytes::Bytes> = body.try_collect().await.map_err(|_| s3_error!(BadDigest))?;
    Ok(Some(StreamingBlob::from(s3s::Body::from(pieces.concat()))))
}

macro_rules! passed_on {
    ($($operation:ident: $input:ident => $output:ident;)*) => {
        #[async_trait::async_trait]
        impl S3 for ConditionalStore {
            $(async fn $operation(&self, request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                self.files.$operation(request).await
            })*

            async fn delete_object(
                &self,
                request: S3Request<DeleteObjectInput>,
            ) -> S3Result<S3Response<DeleteObjectOutput>> {
                self.deletions.single.fetch_add(1, Ordering::Relaxed);
                if self.deletions.is_locked(&request.input.key) {
                    return Err(s3s::s3_error!(AccessDenied, "the object is locked"));
                }
                self.files.delete_object(request).await
            }

            async fn delete_objects(
                &self,
                mut request: S3Request<DeleteObjectsInput>,
            ) -> S3Result<S3Response<DeleteObjectsOutput>> {
                self.deletions.lists.fetch_add(1, Ordering::Relaxed);
                if self.deletions.no_lists.load(Ordering::Relaxed) {
                    return Err(s3s::s3_error!(NotImplemented, "no lists here"));
                }
                let mut errors = Vec::new();
                request.input.delete.objects.retain(|object| {
                    let is_locked = self.deletions.is_locked(&object.key);
                    if is_locked {
                        errors.push(Error {
                            key: Some(object.key.clone()),
                            code: Some("AccessDenied".to_owned()),
                            message: Some("the object is locked".to_owned()),
                            ..Error::default()
                        });
                    }
                    !is_locked
                });
                let mut answer = self.files.delete_objects(request).await?;
                answer.output.errors = Some(errors);
                Ok(answer)
            }

            async fn put_object(
                &self,
                mut request: S3Request<PutObjectInput>,
            ) -> S3Result<S3Response<PutObjectOutput>> {
                if self.conditions == Conditions::Ignored {
                    request.input.if_none_match = None;
                }
                request.input.body = received(request.input.body.take()).await?;
                let _alone = self.one_at_a_time.lock().await;
                self.files.put_object(request).await
            }

            async fn complete_multipart_upload(
                &self,
                mut request: S3Request<CompleteMultipartUploadInput>,
            ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
                if self.conditions == Conditions::Ignored {
                    request.input.if_none_match = None;
                }
                let _alone = self.one_at_a_time.lock().await;
                self.files.complete_multipart_upload(request).await
            }
        }
    };
}

passed_on! {
    get_object: GetObjectInput => GetObjectOutput;
    head_object: HeadObjectInput => HeadObjectOutput;
    list_objects_v2: ListObjectsV2Input => ListObjectsV2Output;
    create_multipart_upload: CreateMultipartUploadInput => CreateMultipartUploadOutput;
    upload_part: UploadPartInput => UploadPartOutput;
    upload_part_copy: UploadPartCopyInput => UploadPartCopyOutput;
    abort_multipart_upload: AbortMultipartUploadInput => AbortMultipartUploadOutput;
    copy_object: CopyObjectInput => CopyObjectOutput;
}
