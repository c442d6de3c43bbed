# in: native/region/connection.cc
# Every read is answered through the output buffer, which large ones do not fit in.
s/const bool copied = header.length <= kInlineReadBytes;/const bool copied = true;/
