# in: test/simulation/manager.cc
# A file is given away as soon as the appliances have been asked to fence who had it.
s/for (auto& appliance : appliances_) fence_at(appliance->index(), client);/&\n  finish_fence(client);/
