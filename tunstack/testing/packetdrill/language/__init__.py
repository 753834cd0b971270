"""The packetdrill language: lexer, parser, syntax tree and printer."""
