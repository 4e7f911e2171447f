"""What we tell others over HTTP. It is handed values and reaches into nothing."""
