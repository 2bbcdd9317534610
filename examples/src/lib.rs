//! Numbered examples of the `rustai` library; see the files beside this folder.
