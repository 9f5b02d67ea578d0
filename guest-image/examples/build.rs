//! Builds an image: `cargo run -p guest-image --example build -- RECIPE AGENT`.

use guest_image::{Bars, Recipe, Store};

fn main() {
    if let Err(error) = build() {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(recipe), Some(agent)) = (args.next(), args.next()) else {
        return Err("usage: build RECIPE AGENT".into());
    };
    let image = Store::of_user()?.build(&Recipe::find(&recipe)?, &std::fs::read(agent)?, &Bars::default())?;
    println!("{}", image.kernel.parent().unwrap_or(&image.kernel).display());
    Ok(())
}
