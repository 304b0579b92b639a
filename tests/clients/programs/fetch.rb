require 'net/http'

reply = Net::HTTP.get_response(URI(ARGV[0]))
reply.value # raises for what is no 2xx
print reply.body
