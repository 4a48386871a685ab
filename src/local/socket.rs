//! Unix sockets to other processes on this machine: connecting without ever waiting, and lending an open file with what is said.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    connect as connect_socket, recvmsg, sendmsg, socket,
};

/// Connects to a Unix socket. A process that hangs takes no connections any more, and once its queue is full a plain `connect` waits for ever: here that is
/// [`io::ErrorKind::WouldBlock`] at once.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let opened: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect_socket(opened.as_raw_fd(), &UnixAddr::new(path)?)?;
    let stream = UnixStream::from(opened);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Writes all bytes, and with the first of them an open file.
pub fn write_with_file(mut stream: &UnixStream, bytes: &[u8], file: &File) -> io::Result<()> {
    let descriptors = [file.as_raw_fd()];
    let lent = [ControlMessage::ScmRights(&descriptors)];
    let sent =
        sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], &lent, MsgFlags::MSG_NOSIGNAL, None)?;
    stream.write_all(bytes.get(sent..).unwrap_or_default())
}

/// Reads what a stream says, and keeps an open file that comes with it.
pub struct FileReceiver<'a> {
    stream: &'a UnixStream,
    /// The first file that came.
    pub file: Option<File>,
}

impl<'a> FileReceiver<'a> {
    /// Nothing has come yet.
    pub fn new(stream: &'a UnixStream) -> FileReceiver<'a> {
        FileReceiver { stream, file: None }
    }
}

impl Read for FileReceiver<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut room = nix::cmsg_space!(RawFd);
        let mut pieces = [IoSliceMut::new(buffer)];
        let received =
            recvmsg::<()>(self.stream.as_raw_fd(), &mut pieces, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC)?;
        for message in received.cmsgs()? {
            let ControlMessageOwned::ScmRights(descriptors) = message else { continue };
            for descriptor in descriptors {
                // SAFETY: the kernel has just made this descriptor for this process, and nobody else knows its number.
                let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
                self.file.get_or_insert_with(|| File::from(owned));
            }
        }
        Ok(received.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_full_queue_is_no_wait() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = UnixListener::bind(&path).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        let mut queued = Vec::new();
        let full = loop {
            match connect(&path) {
                Ok(stream) => queued.push(stream),
                Err(error) => break error,
            }
            assert!(queued.len() < 10, "the queue has no end");
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        drop(listener);
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_file_comes_with_what_is_said() {
        let (asker, answerer) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let long = vec![b'x'; 100_000];
        let writing = {
            let (asker, file, long) = (asker.try_clone().unwrap(), file.try_clone().unwrap(), long.clone());
            std::thread::spawn(move || write_with_file(&asker, &long, &file).unwrap())
        };
        let mut receiver = FileReceiver::new(&answerer);
        let mut said = vec![0; long.len()];
        receiver.read_exact(&mut said).unwrap();
        writing.join().unwrap();
        assert!(said == long);
        receiver.file.take().unwrap().write_all(b"filled").unwrap();
        let mut text = String::new();
        io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "filled");
        (&asker).write_all(b"y").unwrap();
        receiver.read_exact(&mut said[..1]).unwrap();
        assert!(receiver.file.is_none());
    }
}
