"""Language decoders that read connected tokens as `inputs_embeds`."""
