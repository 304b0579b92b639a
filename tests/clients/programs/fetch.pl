# As many of Perl's programs do: LWP::UserAgent, or HTTP::Tiny of its own library.
use strict;
use warnings;

my ($how, $url) = @ARGV;
if ($how eq 'lwp') {
    require LWP::UserAgent;
    my $reply = LWP::UserAgent->new(timeout => 5)->get($url);
    die $reply->status_line unless $reply->is_success;
    print $reply->decoded_content(charset => 'none');
} else {
    require HTTP::Tiny;
    my $reply = HTTP::Tiny->new(timeout => 5)->get($url);
    die $reply->{status} unless $reply->{success};
    print $reply->{content};
}
