"""The subcommands: one file each with `main(arguments) -> exit code`, which nothing else imports."""
