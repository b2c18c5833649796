//! What a file system does for a guest with many small files.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Instant;

/// Makes so many empty files in a directory of their own, looks at each and removes it; answers the microseconds that
/// each of the three took.
pub fn many(directory: &str, count: usize) -> io::Result<String> {
    let directory = Path::new(directory).join("many");
    fs::create_dir(&directory)?;
    let names: Vec<_> = (0..count).map(|number| directory.join(format!("file-{number}"))).collect();
    let took = |act: &dyn Fn(&Path) -> io::Result<()>| {
        let began = Instant::now();
        names.iter().try_for_each(|name| act(name))?;
        io::Result::Ok(began.elapsed().as_micros())
    };
    let made = took(&|name| File::create(name).map(drop))?;
    let seen = took(&|name| fs::metadata(name).map(drop))?;
    let removed = took(&|name| fs::remove_file(name))?;
    fs::remove_dir(directory)?;
    Ok(format!("{made} {seen} {removed}"))
}
