//! The library's file system with the numbers of [`Epochs`].

use super::Epochs;
use std::ffi::CStr;
use std::io;
use std::time::Duration;
use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SerializableFileSystem, SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{Attr, SetattrIn};

/// Requests whose inodes and handles are translated, and whose replies have none.
macro_rules! translated {
    (@one $this:ident $given:ident inode) => { $this.inode($given)? };
    (@one $this:ident $given:ident handle) => { $this.handle($given)? };
    (@one $this:ident $given:ident maybe_handle) => {
        $given.map(|given| $this.handle(given)).transpose()?
    };
    (@one $this:ident $given:ident other) => { $given };
    ($(
        fn $name:ident $(<$param:ident: $bound:path>)?
            ($($given:ident: $kind:ident $type:ty),*) -> $ok:ty;
    )*) => {
        $(
            fn $name $(<$param: $bound>)? (&self, ctx: Context, $($given: $type),*) -> io::Result<$ok> {
                self.inner.$name(ctx, $(translated!(@one self $given $kind)),*)
            }
        )*
    };
}

impl<F: FileSystem<Inode = u64, Handle = u64>> FileSystem for Epochs<F> {
    type Inode = u64;
    type Handle = u64;
    type DirIter = F::DirIter;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        self.inner.init(capable)
    }

    fn destroy(&self) {
        self.forget_all();
        self.inner.destroy();
    }

    fn lookup(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        let parent = self.inode(parent)?;
        let entry = self.inner.lookup(ctx, parent, name)?;
        self.give(parent, name, entry)
    }

    fn forget(&self, _ctx: Context, inode: u64, count: u64) {
        self.forget_one(inode, count);
    }

    fn batch_forget(&self, _ctx: Context, requests: Vec<(u64, u64)>) {
        for (inode, count) in requests {
            self.forget_one(inode, count);
        }
    }

    fn symlink(
        &self,
        ctx: Context,
        target: &CStr,
        parent: u64,
        name: &CStr,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        let parent = self.inode(parent)?;
        let entry = self.inner.symlink(ctx, target, parent, name, extensions)?;
        self.give(parent, name, entry)
    }

    fn mknod(
        &self,
        ctx: Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        device: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        let parent = self.inode(parent)?;
        let made = self
            .inner
            .mknod(ctx, parent, name, mode, device, umask, extensions)?;
        self.give(parent, name, made)
    }

    fn mkdir(
        &self,
        ctx: Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        let parent = self.inode(parent)?;
        let made = self
            .inner
            .mkdir(ctx, parent, name, mode, umask, extensions)?;
        self.give(parent, name, made)
    }

    fn link(&self, ctx: Context, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        let (inode, parent) = (self.inode(inode)?, self.inode(parent)?);
        let entry = self.inner.link(ctx, inode, parent, name)?;
        self.give(parent, name, entry)
    }

    fn open(
        &self,
        ctx: Context,
        inode: u64,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        let inode = self.inode(inode)?;
        let (handle, options) = self.inner.open(ctx, inode, kill_priv, flags)?;
        Ok((self.give_handle(handle)?, options))
    }

    fn create(
        &self,
        ctx: Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        kill_priv: bool,
        flags: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions)> {
        let parent = self.inode(parent)?;
        let (entry, handle, options) = self
            .inner
            .create(ctx, parent, name, mode, kill_priv, flags, umask, extensions)?;
        let entry = self.give(parent, name, entry)?;
        Ok((entry, self.give_handle(handle)?, options))
    }

    fn opendir(
        &self,
        ctx: Context,
        inode: u64,
        flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        let inode = self.inode(inode)?;
        let (handle, options) = self.inner.opendir(ctx, inode, flags)?;
        Ok((self.give_handle(handle)?, options))
    }

    translated! {
        fn getattr(inode: inode u64, handle: maybe_handle Option<u64>) -> (Attr, Duration);
        fn setattr(
            inode: inode u64, attr: other SetattrIn, handle: maybe_handle Option<u64>,
            valid: other SetattrValid
        ) -> (Attr, Duration);
        fn readlink(inode: inode u64) -> Vec<u8>;
        fn unlink(parent: inode u64, name: other &CStr) -> ();
        fn rmdir(parent: inode u64, name: other &CStr) -> ();
        fn rename(
            from: inode u64, name: other &CStr, to: inode u64, new: other &CStr, flags: other u32
        ) -> ();
        fn read<W: ZeroCopyWriter>(
            inode: inode u64, handle: handle u64, to: other W, size: other u32,
            offset: other u64, owner: other Option<u64>, flags: other u32
        ) -> usize;
        fn write<R: ZeroCopyReader>(
            inode: inode u64, handle: handle u64, from: other R, size: other u32,
            offset: other u64, owner: other Option<u64>, delayed: other bool,
            kill_priv: other bool, flags: other u32
        ) -> usize;
        fn flush(inode: inode u64, handle: handle u64, owner: other u64) -> ();
        fn fsync(inode: inode u64, data: other bool, handle: handle u64) -> ();
        fn fallocate(
            inode: inode u64, handle: handle u64, mode: other u32, offset: other u64,
            length: other u64
        ) -> ();
        fn release(
            inode: inode u64, flags: other u32, handle: handle u64, flush: other bool,
            flock_release: other bool, owner: other Option<u64>
        ) -> ();
        fn statfs(inode: inode u64) -> libc::statvfs64;
        fn setxattr(
            inode: inode u64, name: other &CStr, value: other &[u8], flags: other u32,
            extra_flags: other SetxattrFlags
        ) -> ();
        fn getxattr(inode: inode u64, name: other &CStr, size: other u32) -> GetxattrReply;
        fn listxattr(inode: inode u64, size: other u32) -> ListxattrReply;
        fn removexattr(inode: inode u64, name: other &CStr) -> ();
        fn readdir(
            inode: inode u64, handle: handle u64, size: other u32, offset: other u64
        ) -> F::DirIter;
        fn fsyncdir(inode: inode u64, data: other bool, handle: handle u64) -> ();
        fn releasedir(inode: inode u64, flags: other u32, handle: handle u64) -> ();
        fn access(inode: inode u64, mask: other u32) -> ();
        fn lseek(
            inode: inode u64, handle: handle u64, offset: other u64, whence: other u32
        ) -> u64;
        fn copyfilerange(
            inode_in: inode u64, handle_in: handle u64, offset_in: other u64,
            inode_out: inode u64, handle_out: handle u64, offset_out: other u64,
            length: other u64, flags: other u64
        ) -> usize;
        fn syncfs(inode: inode u64) -> ();
    }
}

/// A file system that is never moved to another process: the library's default, which refuses.
impl<F> SerializableFileSystem for Epochs<F> {}
