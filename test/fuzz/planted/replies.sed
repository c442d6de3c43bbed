# in: native/fabric/wire_receive.cc
# Of a reply behind another, all its bytes are taken to have come with it.
s/const size_t ready = std::min<size_t>(in_end_ - in_begin_, reply.length);/const size_t ready = reply.length;/
