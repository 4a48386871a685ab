//! How much memory the C library keeps for processes with many threads.

/// Variables for a process of ours that runs long, with threads that come and go. glibc gives each thread a heap of its own and keeps what each once took: that was measured to be 100 MB where 20
/// are used. One heap for all, and buffers of chunks straight from the system and back to it.
pub const ONE_HEAP: [(&str, &str); 2] = [("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_THRESHOLD_", "262144")];

/// Whether the operator has other wishes, or we have said ours already.
pub fn is_decided() -> bool {
    ONE_HEAP.iter().any(|(name, _)| std::env::var_os(name).is_some())
}
