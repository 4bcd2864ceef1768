//! The Dockerfile language: lex, parse, expand, ignore file. Pure: text in, values out
