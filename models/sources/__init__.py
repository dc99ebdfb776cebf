"""Where models and data come from: tables of them, files of the user, downloads."""
