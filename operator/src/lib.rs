//! Watches ImageBuilds, decides, creates builder pods, writes status
