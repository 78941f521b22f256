"""Reads models of CTranslate2, the engine of faster-whisper."""
